"""Whether cost grows linearly: a step after 10, 1,000 and 100,000 steps, and with 1, 10 and 100 times the corpus.

python -m benchmarks.linear [--steps 100000]
A tiny model, for what does not depend on the model shows best there: logging, tracking, checkpoints, the data.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.results import write_report
from benchmarks.trained import batches_of, params_of, trainer_of
from gpt2core.data.corpus import read_corpus
from gpt2core.data.tokens import open_tokens
from gpt2core.data.writer import write_tokens
from gpt2core.runtime import Runtime
from gpt2core.training.events import TrainerEvents
from gpt2core.training.trainer import Trainer
from gpt2ops.pipeline import paths
from gpt2ops.tracking.api import start_run
from gpt2ops.training.log import MLflowRows

SETTINGS: dict[str, Any] = {
    "model.block_size": 16,
    "model.n_layer": 1,
    "model.n_head": 1,
    "model.n_embd": 8,
    "train.optimizer": "adamw",
    "train.batch_size": 2,
    "train.sequence_length": 16,
    "train.eval_interval": 10_000,
    "train.eval_batches": 1,
    "train.sample_tokens": 0,
}
AROUND = 500  # steps whose median and mean are taken; the mean has the checkpoints


class Clock(TrainerEvents):
    def __init__(self) -> None:
        self.ends: list[float] = []
        self.memory: dict[int, int] = {}

    def on_step(self, trainer: Trainer, train_loss: float) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) % 1000 == 0 or len(self.ends) == 10:
            self.memory[len(self.ends)] = psutil.Process().memory_info().rss

    def around(self, step: int) -> tuple[float, float]:
        """Median and mean milliseconds of the steps that end with `step`, or begin with it where it is the tenth."""
        first = step if step == 10 else step - AROUND
        ends = self.ends[first : first + AROUND]
        seconds = [later - earlier for earlier, later in itertools.pairwise(ends)]
        return statistics.median(seconds) * 1000, statistics.mean(seconds) * 1000


def tokenize(copies: int, folder: Path) -> float:
    """Seconds for `copies` of the bundled plays."""
    text = folder / "text.txt"
    content = paths.BUNDLED_CORPUS.read_text(encoding="utf-8")
    text.write_text("\n<|endoftext|>\n".join([content] * copies), encoding="utf-8")
    before = time.perf_counter()
    shares = {"train": 1.0, "val": 0.0, "test": 0.0}
    write_tokens(folder / "tokens", read_corpus([text]), source="bundled", shares=shares, split_by="tokens")
    return time.perf_counter() - before


def train(folder: Path, steps: int) -> Clock:
    """A tracked training, as the stage does it."""
    params = params_of({**SETTINGS, "train.stop": {"max_steps": steps, "target_loss": None}})
    batches = batches_of(params, open_tokens(folder / "tokens").split("train"))
    clock = Clock()
    with tempfile.TemporaryDirectory() as checkpoints:
        run = Runtime(torch.device("cpu"), "fp32", "for the benchmark")
        tracked = start_run(params, "benchmark")
        trainer_of(params, batches, checkpoints, run, (MLflowRows(tracked), clock)).fit()
        tracked.finish("FINISHED")
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    arguments = parser.parse_args()
    paths.BUNDLED_CORPUS = paths.BUNDLED_CORPUS.resolve()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home):
        os.environ["GPT2_PROJECT_ROOT"] = home
        corpora = ["| corpus | tokens | tokenizing | a step, median |", "|---|---|---|---|"]
        for copies in (100, 10, 1):
            seconds = tokenize(copies, Path(home))
            tokens = len(open_tokens(Path(home) / "tokens").split("train"))
            median, _ = train(Path(home), 2 * AROUND).around(2 * AROUND)
            corpora.insert(2, f"| {copies}x | {tokens:,} | {seconds:.2f} s | {median:.2f} ms |")
        clock = train(Path(home), arguments.steps)
    steps = ["| after step | a step, median | mean, with checkpoints | memory |", "|---|---|---|---|"]
    for step in sorted({step for step in (10, 1000, 10_000) if step < arguments.steps} | {arguments.steps}):
        median, mean = clock.around(step)
        steps.append(f"| {step:,} | {median:.2f} ms | {mean:.2f} ms | {clock.memory[step] / 2**20:.0f} MiB |")
    write_report(
        "linear",
        "Cost grows linearly: a tiny model with MLflow and checkpoints, one thread",
        [*steps, "", *corpora],
        f"python -m benchmarks.linear --steps {arguments.steps}",
    )


if __name__ == "__main__":
    main()
