"""Several trainings that differ in their seed alone: how far their results lie apart, and which one goes on.

The median by validation is kept: the best of several would owe a part of its score to luck.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2ops.params.schema import Params

FIELDS = ("steps", "train_loss", "best_val_loss", "target_reached")  # of train.json, kept for each seed


@dataclass(frozen=True)
class SeedRun:
    """What a finished training of one seed leaves: where its best weights lie, and the content of its reports."""

    seed: int
    best_directory: Path
    history: Sequence[dict[str, Any]]
    metrics: dict[str, Any]
    record: dict[str, Any]

    @property
    def score(self) -> float:
        """The best validation loss; where no text was held out for validation, the training loss."""
        loss = self.metrics["best_val_loss"]
        loss = self.metrics["train_loss"] if loss is None else loss
        return float("inf") if loss is None else float(loss)


def of_each_seed(params: Params) -> Iterator[Params]:
    """The same settings with seed, seed + 1 ..., `run.seeds` of them."""
    for number in range(params.run.seeds):
        run = params.run.model_copy(update={"seed": params.run.seed + number})
        yield params.model_copy(update={"run": run})


def median(runs: Sequence[SeedRun]) -> SeedRun:
    """The one in the middle by its score; of an even number the worse of the two in the middle, never the best."""
    return sorted(runs, key=lambda run: run.score)[len(runs) // 2]


def summary(runs: Sequence[SeedRun]) -> dict[str, Any]:
    """What train.json says of several seeds: `mean` and `stdev` of the scores, `kept`, and each run by its seed."""
    scores = [run.score for run in runs]
    return {
        "by": "best_val_loss" if all(run.metrics["best_val_loss"] is not None for run in runs) else "train_loss",
        "mean": statistics.fmean(scores),
        "stdev": statistics.stdev(scores),
        "kept": median(runs).seed,
        "runs": {
            str(run.seed): {"run_id": run.record["run_id"], **{key: run.metrics[key] for key in FIELDS}} for run in runs
        },
    }


def summary_line(found: dict[str, Any]) -> str:
    """`summary` for the log."""
    each = ", ".join(f"{seed}: {run[found['by']]:.4f}" for seed, run in found["runs"].items())
    return (
        f"{found['by']} over {len(found['runs'])} seeds: {found['mean']:.4f} ± {found['stdev']:.4f} ({each}); "
        f"seed {found['kept']}, the median, goes on"
    )
