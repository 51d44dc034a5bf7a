"""Stage `finetune`: data/tokens -> models/best, models/run.json, the training history and its metrics."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process(large_tensors=True)

import os
import shutil
import signal
import sys
from dataclasses import replace

from gpt2core import runtime
from gpt2core.data.tokens import open_tokens
from gpt2core.storage.files import replaced_directory, sha256_file, write_json
from gpt2core.storage.hf import WEIGHTS
from gpt2core.tokenizer import Tokenizer
from gpt2core.training.events import TrainResult
from gpt2ops.params.schema import Params, load_params
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.process.signals import Interruption, is_rank, spawn_ranks
from gpt2ops.process.stage import run_stage
from gpt2ops.tracking.api import tracked_run
from gpt2ops.training.examples import template_for
from gpt2ops.training.run import TrackedTraining, Training, describe_saved, set_up, train_metrics
from gpt2ops.training.seeds import SeedRun, median, of_each_seed, summary, summary_line


def main() -> None:
    params = load_params()
    if params.run.nproc_per_node > 1 and not is_rank():
        spawn_ranks(params.run.nproc_per_node)
    finished: list[SeedRun] = []
    with Interruption() as interruption:
        for number, settings in enumerate(of_each_seed(params), start=1):
            if params.run.seeds > 1 and runtime.rank() == 0:
                say(f"seed {settings.run.seed}, {number} of {params.run.seeds}")
            if train_seed(settings, interruption, finished).stop_reason == "interrupted":
                sys.exit(128 + (interruption.signal or signal.SIGTERM))
    if len(finished) > 1:
        keep_median(finished)


def train_seed(params: Params, interruption: Interruption, finished: list[SeedRun]) -> TrainResult:
    """On every rank. The model is freed at the end: the next seed needs its memory."""
    training = set_up(params, interruption.requested)
    return train(training, finished) if runtime.rank() == 0 else training.trainer.fit()


def train(training: Training, finished: list[SeedRun]) -> TrainResult:
    """Train, and write the outputs unless the run was interrupted; what it leaves is added to `finished`."""
    with TrackedTraining(training) as run:
        result = run.fit()
        if result.stop_reason != "interrupted":
            metrics, trainer = train_metrics(training, result), training.trainer
            seed = training.params.run.seed
            finished.append(SeedRun(seed, trainer.best_directory, trainer.history, metrics, run.record()))
            write_outputs(finished[-1])
            run.log_result(metrics)
    if result.stop_reason == "interrupted" and "GPT2_COMMAND" not in os.environ:  # the command has its own message
        saved_step = training.trainer.saved_step
        next_run = "starts again" if saved_step is None else "resumes from it"
        saved = describe_saved(saved_step, result.steps)
        print(f"interrupted; {saved}; the next `dvc repro` {next_run}", file=sys.stderr, flush=True)
    return result


def write_outputs(run: SeedRun) -> None:
    with replaced_directory(paths.BEST_MODEL) as partial:
        shutil.copytree(run.best_directory, partial, dirs_exist_ok=True)
        Tokenizer().save(partial)
        if template := template_for(open_tokens(paths.TOKENS).manifest):
            template.save(partial)
    write_json(paths.HISTORY, run.history)
    write_json(paths.TRAIN_METRICS, run.metrics)
    write_json(paths.RUN, {**run.record, "weights_sha256": sha256_file(paths.BEST_MODEL / WEIGHTS)})


def keep_median(finished: list[SeedRun]) -> None:
    """The outputs of several seeds: those of the median, with what all of them gave."""
    kept, found = median(finished), summary(finished)
    metrics, record = {**kept.metrics, "seeds": found}, {**kept.record, "seed": kept.seed}
    write_outputs(replace(kept, metrics=metrics, record=record))
    say(summary_line(found))
    with tracked_run() as run:
        run.log_metrics({"seeds/mean": found["mean"], "seeds/stdev": found["stdev"]})
        run.set_tags({"median_of_seeds": ", ".join(found["runs"])})


if __name__ == "__main__":
    run_stage("finetune", main)
