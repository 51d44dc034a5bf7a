"""`gpt2 runs`: the runs of the MLflow store, one a line."""

import argparse
from typing import Any

from gpt2core.errors import UserError
from gpt2ops.cli.output import number, put, put_json, put_table

DESCRIPTION = """\
List the runs in ./mlruns, or in the store that MLFLOW_TRACKING_URI names,
newest first. RUN is the start of the run's id: `gpt2 compare A B` and
`gpt2 rerun A` take it."""
EXAMPLES = """\
examples:
  gpt2 runs
  gpt2 runs --sort val_loss --limit 5
  gpt2 runs --sort test_perplexity --experiment novel
  gpt2 runs --json | jq '.[0].metrics'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many (default: %(default)s)")
    parser.add_argument(
        "--sort",
        default="started",
        metavar="BY",
        help="started, or a metric, the best first: val_loss, train_loss, test_perplexity, tokens_per_second ... "
        "(default: %(default)s)",
    )
    parser.add_argument("--experiment", metavar="NAME", help="only those of this MLflow experiment")
    parser.add_argument("--json", action="store_true", help="a list of objects, with all settings and metrics")


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError where there is no store, no such experiment or no run that has the metric."""
    from gpt2ops.registry.runs import list_runs, metric_name

    if arguments.limit < 1:
        raise UserError(f"--limit ({arguments.limit}) must be at least 1.")
    found = list_runs(experiment=arguments.experiment, limit=arguments.limit, sort=arguments.sort)
    if arguments.sort != "started" and found and metric_name(arguments.sort) not in found[0].metrics:
        raise UserError(
            f"--sort ({arguments.sort!r}): no run has this metric; take started, val_loss, test_perplexity, "
            "or another that `gpt2 runs --json` shows."
        )
    if arguments.json:
        put_json([as_object(run) for run in found])
    elif not found:
        put("no runs yet\n")
    else:
        headers = ["RUN", "NAME", "STARTED", "STATE", "STEPS", "VAL LOSS", "TEST PPL"]
        rows = [
            [
                run.run_id[:8],
                run.name,
                f"{run.started.astimezone():%d %b %H:%M}",
                run.state,
                number(run.metrics.get("steps")),
                number(run.metrics.get("best_val_loss", run.metrics.get("val_loss"))),
                number(run.metrics.get("evaluate/test_perplexity")),
            ]
            for run in found
        ]
        put_table(headers, rows, left=(0, 1, 2, 3), shrink=1)


def as_object(run: Any) -> dict[str, Any]:
    return {**vars(run), "started": run.started.isoformat()}
