"""Stage `finetune`: data/tokens -> models/best, models/run.json, the training history and its metrics."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process(large_tensors=True)

import os
import shutil
import signal
import sys
from typing import Any

from gpt2core import runtime
from gpt2core.storage.files import replaced_directory, sha256_file, write_json
from gpt2core.storage.hf import WEIGHTS
from gpt2core.tokenizer import Tokenizer
from gpt2core.training.events import TrainResult
from gpt2core.training.trainer import Trainer
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.process.signals import Interruption, is_rank, spawn_ranks
from gpt2ops.process.stage import run_stage
from gpt2ops.training.run import TrackedTraining, Training, describe_saved, set_up, train_metrics


def main() -> None:
    params = load_params()
    if params.run.nproc_per_node > 1 and not is_rank():
        spawn_ranks(params.run.nproc_per_node)
    with Interruption() as interruption:
        training = set_up(params, interruption.requested)
        result = train(training) if runtime.rank() == 0 else training.trainer.fit()
    if result.stop_reason == "interrupted":
        sys.exit(128 + (interruption.signal or signal.SIGTERM))


def train(training: Training) -> TrainResult:
    """Train, and write the outputs unless the run was interrupted."""
    with TrackedTraining(training) as run:
        result = run.fit()
        if result.stop_reason != "interrupted":
            metrics = train_metrics(training, result)
            write_outputs(training.trainer, run.record(), metrics)
            run.log_result(metrics)
    if result.stop_reason == "interrupted" and "GPT2_COMMAND" not in os.environ:  # the command has its own message
        saved_step = training.trainer.saved_step
        next_run = "starts again" if saved_step is None else "resumes from it"
        saved = describe_saved(saved_step, result.steps)
        print(f"interrupted; {saved}; the next `dvc repro` {next_run}", file=sys.stderr, flush=True)
    return result


def write_outputs(trainer: Trainer, record: dict[str, Any], metrics: dict[str, Any]) -> None:
    with replaced_directory(paths.BEST_MODEL) as partial:
        shutil.copytree(trainer.best_directory, partial, dirs_exist_ok=True)
        Tokenizer().save(partial)
    write_json(paths.HISTORY, trainer.history)
    write_json(paths.TRAIN_METRICS, metrics)
    write_json(paths.RUN, {**record, "weights_sha256": sha256_file(paths.BEST_MODEL / WEIGHTS)})


if __name__ == "__main__":
    run_stage("finetune", main)
