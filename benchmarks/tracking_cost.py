"""What tracking costs: the same training with and without MLflow, in one run, as a share of its time.

python -m benchmarks.tracking_cost [--steps 5000] [--repeats 3]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.trained import batches_of, params_of, trainer_of
from gpt2core.data.corpus import read_corpus
from gpt2core.data.tokens import open_tokens
from gpt2core.data.writer import write_tokens
from gpt2core.runtime import Runtime
from gpt2ops.params.schema import Params
from gpt2ops.pipeline import paths
from gpt2ops.tracking.api import start_run
from gpt2ops.training.log import MLflowRows

# A step of about 20 ms on two cores: the smaller the step, the more tracking weighs.
SETTINGS: dict[str, Any] = {
    "model.block_size": 32,
    "model.n_layer": 1,
    "model.n_head": 2,
    "model.n_embd": 64,
    "train.optimizer": "adamw",
    "train.batch_size": 4,
    "train.sequence_length": 32,
    "train.eval_interval": 10_000_000,
    "train.checkpoint_interval": 10_000_000,
    "train.sample_tokens": 0,
    "train.eval_batches": 1,
}


def train(params: Params, folder: Path, tracked: bool) -> tuple[float, float]:
    """Seconds of wall clock and of this process's CPU time, from the first step to the last metric delivered."""
    batches = batches_of(params, open_tokens(folder).split("train"))
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = trainer_of(params, batches, checkpoints, Runtime(torch.device("cpu"), "fp32", "for the benchmark"))
        run = start_run(params, "benchmark") if tracked else None
        if run is not None:
            trainer.listeners = (MLflowRows(run),)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.fit()
        if run is not None:
            run.finish("FINISHED")
        return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    corpus = paths.BUNDLED_CORPUS.resolve()
    with tempfile.TemporaryDirectory() as home:
        os.environ["GPT2_PROJECT_ROOT"] = home
        os.chdir(home)
        folder = Path(home) / "tokens"
        documents = read_corpus([corpus], text_field="text", on_bytes=lambda count: None)
        shares = {"train": 1.0, "val": 0.0, "test": 0.0}
        write_tokens(
            folder, documents, source="bundled", shares=shares, split_by="tokens", max_tokens=None, workers=None
        )
        stop = {"max_steps": arguments.steps, "target_loss": None}
        params = params_of({**SETTINGS, "train.stop": stop})
        times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for _ in range(arguments.repeats):
            for tracked in (False, True):  # interleaved: both see the same machine
                times[tracked].append(train(params, folder, tracked))
        for kind, name in ((0, "wall"), (1, "CPU")):
            plain, tracked_time = (statistics.median(t[kind] for t in times[key]) for key in (False, True))
            share = tracked_time / plain - 1
            print(f"{arguments.steps} steps, {name}: {plain:.1f} s without, {tracked_time:.1f} s with, {share:+.2%}")


if __name__ == "__main__":
    main()
