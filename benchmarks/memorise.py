"""Minutes, tokens and epochs until a full pass over the training text is under a target loss, from scratch.

python -m benchmarks.memorise --text FILE [--tokens 40000] [--target 0.09999] [--minutes 30]
`--settings '{"train.learning_rate": 1e-3}'` tries other settings of params.yaml. The row goes to benchmarks/RESULTS.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import HERE, machine, origin_lines, write_section

ROWS = HERE / "memorise.json"
START, END = "<!-- memorise: written by benchmarks.memorise -->", "<!-- memorise: end -->"

SETTINGS: dict[str, Any] = {
    "model.preset": "gpt2",
    "train.checkpoint_interval": 10**7,
    "train.eval_interval": "epoch",
    "train.eval_batches": 4,
    "train.sample_tokens": 0,
    "train.recipe": "memorise",
    "train.warmup_steps": None,
}


def train(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.trained import batches_of, params_of, trainer_of
    from gpt2core.data.tokens import open_tokens
    from gpt2core.runtime import pick_runtime, set_threads
    from gpt2core.training.events import TrainerEvents
    from gpt2ops.process.startup import keep_freed_memory

    keep_freed_memory()
    set_threads(None)
    stop = {"target_loss": job["target"], "metric": "train_full", "max_steps": None, "max_epochs": job["epochs"]}
    params = params_of({**job["settings"], "train.stop": stop})
    batches = batches_of(params, open_tokens(job["tokens"]).split("train"))
    began = time.perf_counter()

    def is_late() -> bool:
        return time.perf_counter() - began > job["minutes"] * 60

    evaluations: list[tuple[float, float]] = []

    class Say(TrainerEvents):
        def on_evaluation(self, row: dict[str, Any]) -> None:
            evaluations.append((row["epoch"], row["train_eval_loss"]))
            minutes = (time.perf_counter() - began) / 60
            print(f"{minutes:5.1f} min, epoch {row['epoch']:.0f}, loss {row['train_eval_loss']:.4f}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        result = trainer_of(params, batches, folder, pick_runtime("auto", "auto"), (Say(),), is_late).fit()
    return {
        "minutes": (time.perf_counter() - began) / 60,
        "loss": result.train_loss_full,
        "average": result.train_loss,
        "steps": result.steps,
        "tokens": result.tokens_seen,
        "epochs": result.epochs,
        "why": result.stop_reason,
        "evaluations": evaluations,
        "length": len(batches.split),
    }


def table(rows: dict[str, Any]) -> list[str]:
    lines = ["| text, settings | full pass | minutes | epochs | tokens | steps |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        loss = f"{row['loss']:.5f}" if row["loss"] is not None else f"not reached; the average was {row['average']:.3f}"
        lines.append(
            f"| {name} | {loss} | {row['minutes']:.1f} | {row['epochs']:.1f} | {row['tokens']:,} | {row['steps']:,} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, required="--child" not in sys.argv)
    parser.add_argument("--tokens", type=int, default=40_000, help="the first so many")
    parser.add_argument("--target", type=float, default=0.09999)
    parser.add_argument("--minutes", type=float, default=30.0, help="then it ends without")
    parser.add_argument("--epochs", type=float, default=10.0, help="for which the schedule is made")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(train(json.loads(arguments.child))))
        return
    from gpt2core.data.corpus import read_corpus
    from gpt2core.data.writer import write_tokens

    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(
            Path(folder) / "tokens",
            read_corpus([arguments.text]),
            source=arguments.text.name,
            shares={"train": 1.0, "val": 0.0, "test": 0.0},
            split_by="tokens",
            max_tokens=arguments.tokens,
        )
        job = {
            "tokens": str(Path(folder) / "tokens"),
            "settings": {**SETTINGS, **arguments.settings},
            **{key: getattr(arguments, key) for key in ("target", "minutes", "epochs")},
        }
        command = [sys.executable, "-m", "benchmarks.memorise", "--child", json.dumps(job)]
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    changed = f", {json.dumps(arguments.settings)}" if arguments.settings else ""
    name = f"{found['length']:,} tokens of {arguments.text.name} to {arguments.target:g}{changed}"
    rows[name] = {
        **found,
        **machine(),
        "command": f"python -m benchmarks.memorise --text FILE --tokens {arguments.tokens} "
        f"--epochs {arguments.epochs:g}",
    }
    ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(*table({name: rows[name]})[2:], sep="\n")
    title = "## Learning a text by heart: 124M from scratch"
    write_section(START, END, "\n".join([START, "", title, "", *table(rows), *origin_lines(rows), "", END]))


if __name__ == "__main__":
    main()
