"""`gpt2 compare A B`: two runs side by side."""

import argparse
from typing import TYPE_CHECKING, Any

from gpt2ops.cli.output import number, put, put_json, put_table
from gpt2ops.registry.scoring.coverage import certainty_text, split_score

if TYPE_CHECKING:
    from gpt2ops.registry.run_losses import LossComparison
    from gpt2ops.registry.runs import Run, RunComparison

DESCRIPTION = """\
Compare two runs: the settings that differ, the metrics with their differences,
whether data and code are the same, and which model is better, or only luckier,
on the held-out text of both. A run is its id or the start of it, its name, or
models:/NAME@ALIAS."""
EXAMPLES = """\
examples:
  gpt2 compare 3f99d95e a81c07bb
  gpt2 compare models:/gpt2@champion models:/gpt2@challenger
  gpt2 compare 3f99d95e a81c07bb --json"""
SHOWN = (
    "steps",
    "tokens_seen",
    "train_loss",
    "best_val_loss",
    "evaluate/train_perplexity",
    "evaluate/val_perplexity",
    "evaluate/test_perplexity",
    "evaluate/test_bits_per_byte",
    "evaluate/test_token_accuracy",
    "evaluate/verbatim_recall",
    "evaluate/generalisation_gap",
    "tokens_per_second",
    "wall_seconds",
)
_NAMES = {"data_sha256": "data", "code_version": "version", "code_sha256": "code", "git_commit": "commit"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("first", metavar="A", help="a run: its id, the start of it, its name, models:/NAME@ALIAS")
    parser.add_argument("second", metavar="B", help="another")
    parser.add_argument("--json", action="store_true", help="an object, with every metric")


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError where a run does not exist, or its name is ambiguous."""
    from gpt2ops.registry.run_losses import compare_losses
    from gpt2ops.registry.runs import compare_runs, find_run

    first, second = find_run(arguments.first), find_run(arguments.second)
    comparison, losses = compare_runs(first, second), compare_losses(first, second)
    if arguments.json:
        put_json({**as_object(first, second, comparison), "held_out": losses.as_object()})
    else:
        show(first, second, comparison)
        show_losses(losses)


def show_losses(losses: "LossComparison") -> None:
    put(f"\non the same held-out text{f' ({losses.text})' if losses.text else ''}:\n  {losses.verdict}\n")


def show(first: "Run", second: "Run", comparison: "RunComparison") -> None:
    headers = ["", first.run_id[:8], second.run_id[:8]]
    about = [
        ["name", first.name, second.name],
        ["started", *(f"{run.started.astimezone():%Y-%m-%d %H:%M}" for run in (first, second))],
        ["state", first.state, second.state],
        *(
            [name, *same_or_both(*comparison.origin[key])]
            for key, name in _NAMES.items()
            if any(comparison.origin[key])
        ),
    ]
    put_table(headers, about, left=(0, 1, 2))
    put("\n")
    if comparison.params:
        rows = [
            [key, *(value if value is not None else "-" for value in pair)] for key, pair in comparison.params.items()
        ]
        put_table(["SETTING", *headers[1:]], rows, left=(0, 1, 2))
    else:
        put("all settings are the same\n")
    put("\n")
    shown = {key: comparison.metrics[key] for key in SHOWN if key in comparison.metrics}
    rows = [[key.removeprefix("evaluate/"), number(a), number(b), difference(a, b)] for key, (a, b) in shown.items()]
    put_table(["METRIC", *headers[1:], "CHANGE"], rows)
    for run in (first, second):
        for split in ("train", "val", "test"):
            score = split_score(run.metrics, split)
            said = certainty_text(score)
            if said:
                put(f"{run.run_id[:8]} {split}_perplexity: {said}\n")


def same_or_both(first: str | None, second: str | None) -> tuple[str, str]:
    if first is not None and first == second:
        return first[:12], "the same"
    return (first or "unknown")[:12], (second or "unknown")[:12]


def difference(first: float | None, second: float | None) -> str:
    if first is None or second is None:
        return "-"
    if first == second:
        return "0"
    share = f" ({(second - first) / abs(first):+.1%})" if first else ""
    sign = "+" if second > first else "-"
    return f"{sign}{number(abs(second - first))}{share}"


def as_object(first: "Run", second: "Run", comparison: "RunComparison") -> dict[str, Any]:
    return {
        "runs": [{"run_id": run.run_id, "name": run.name, "state": run.state} for run in (first, second)],
        "params": comparison.params,
        "metrics": {
            key: {"values": [a, b], "difference": b - a if a is not None and b is not None else None}
            for key, (a, b) in comparison.metrics.items()
        },
        "origin": comparison.origin,
    }
