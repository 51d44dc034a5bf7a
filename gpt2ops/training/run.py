"""One training run around the library's `Trainer`: set up, resume, track, log, and describe its end."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpt2core import runtime
from gpt2core.config import GPTConfig
from gpt2core.data.examples.template import Template
from gpt2core.data.tokens import TokenSet, open_tokens
from gpt2core.errors import UserError
from gpt2core.evaluation.scores import unigram_loss
from gpt2core.runtime import Runtime
from gpt2core.storage.files import read_json
from gpt2core.tokenizer import Tokenizer
from gpt2core.training.config import TrainerConfig, TrainSettings
from gpt2core.training.events import TrainResult
from gpt2core.training.trainer import Trainer
from gpt2ops.params.schema import Params, check_control, check_sequence_length
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.run_origin import INITIAL_WEIGHTS_TAG
from gpt2ops.process.failures import failure_line
from gpt2ops.process.signals import is_rank
from gpt2ops.tracking.api import start_run
from gpt2ops.training.environment import environment
from gpt2ops.training.examples import example_lines, open_batches, template_for
from gpt2ops.training.fingerprint import checkpoints_of, fingerprint_of, recorded, unfinished_run, was_lost
from gpt2ops.training.initial_model import initial_model, initial_weights_sha256
from gpt2ops.training.log import MLflowRows, ProgressBar, TrainingLog
from gpt2ops.training.memory import check_memory
from gpt2ops.training.references import LossReference, published_for
from gpt2ops.training.watch import StatusFile, Warnings

# The frequencies of this many tokens give their entropy to two decimals; counting takes 30 ms.
FREQUENCY_TOKENS = 5_000_000


@dataclass(frozen=True)
class Training:
    """What one rank of a run trains with; `resumed` says whether it starts from a checkpoint."""

    params: Params
    run: Runtime
    threads: int
    tokens: TokenSet
    trainer: Trainer
    resumed: bool


def set_up(params: Params, interrupted: Callable[[], bool]) -> Training:
    """Configure torch, open the data, build the trainer and load the newest checkpoint of this run.

    Raises UserError where the settings, the data, the model and the machine do not fit together.
    """
    check_control(params)  # else the stage after the training would find it
    threads = runtime.set_threads(params.run.threads)
    run = runtime.pick_runtime(params.run.device, params.run.precision)
    if params.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses
    runtime.set_determinism(params.run.deterministic)
    keep_compiled_kernels()
    if is_rank():
        runtime.join_process_group(run.device)
    tokens = open_tokens(paths.TOKENS)
    if runtime.rank() == 0:
        tokens.verify()
    batches = open_batches(params, tokens.split("train"))
    check_new_model_fits(params, run.device.type)
    model = initial_model(params)
    check_sequence_length(params.train.sequence_length, model.config.block_size)
    fingerprint = fingerprint_of(params, model.config.as_dict(), tokens.manifest["sha256"], run.precision)
    val = tokens.split("val")
    trainer = Trainer(
        model,
        batches,
        val,
        trainer_config(params, run.device.type, len(val), template_for(tokens.manifest)),
        run=run,
        checkpoints=checkpoints_of(fingerprint),
        fingerprint=fingerprint,
        interrupted=interrupted,
    )
    resumed = params.train.resume and trainer.resume(was_lost)
    return Training(params, run, threads, tokens, trainer, resumed)


def keep_compiled_kernels() -> None:
    """Cache compiled kernels in the user's home: torch's default is a temporary directory, empty after a reboot."""
    with suppress(UserError):  # an account may have no home
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.user_cache() / "compiled"))


def check_new_model_fits(params: Params, device: str) -> None:
    """Raises UserError for a new model too large for this machine. Existing weights were trained somewhere."""
    if params.model.init != "scratch":
        return
    share = params.train.batch_size // params.run.nproc_per_node
    check_memory(
        GPTConfig.from_preset(params.model.preset, **params.model.overrides),
        device=device,
        optimizer=params.train.optimizer,
        micro_tokens=(params.train.micro_batch_size or share) * params.train.sequence_length,
    )


def trainer_config(params: Params, device: str, val_tokens: int, template: Template | None = None) -> TrainerConfig:
    """The library's settings from `params.train`; `template` is that of examples.

    Raises UserError where compile is on and there is no compiler.
    """
    tokenizer, stop = Tokenizer(), params.train.stop
    train, best_by = params.train, params.train.best_by
    if best_by == "auto":
        held_out = val_tokens > 1 and not (stop.target_loss and stop.metric != "val")
        best_by = "val_loss" if held_out else "train_loss"
    prompt = template.prompt(train.sample_prompt) if template else train.sample_prompt
    compilers = ("g++", "clang++", "cl")
    if train.compile == "on" and device == "cpu" and not any(map(shutil.which, compilers)):
        rule = "needs a C++ compiler, and none (g++, clang++ or cl) was found"
        raise UserError(key="train.compile", value="on", rule=rule, remedy="install one or set it to off")
    return TrainerConfig(
        **{entry.name: getattr(train, entry.name) for entry in fields(TrainSettings)},
        **stop.model_dump(),
        eval_interval=None if train.eval_interval == "epoch" else train.eval_interval,
        best_by=best_by,
        sample_prompt=tuple(tokenizer.encode(prompt)) or (tokenizer.eot_id,),
        seed=params.run.seed,
        own_kernels=params.run.kernels == "auto",
    )


class TrackedTraining:
    """A training with its log, progress bar and MLflow run, which are closed however it ends."""

    def __init__(self, training: Training) -> None:
        self.training, self.trainer = training, training.trainer
        self.log, self.progress = TrainingLog(), ProgressBar()
        self._status = "FAILED"  # of the MLflow run, until the body says otherwise

    def __enter__(self) -> Self:
        params, trainer = self.training.params, self.trainer
        for line in setup_lines(self.training):
            self.log.say(line)
        reference = loss_reference(trainer, params.data.source)
        self.log.compare_with(reference)
        self.tracked = start_run(
            params,
            run_name(params),
            resume_run_id=trainer.extra.get("run_id"),
            resume_key=trainer.checkpoints.name if params.train.resume else None,
        )
        if not self.training.resumed:
            self._start_over()
        elif not trainer.ended:
            self._resume()
        if trainer.ended:
            self.log.say("this run is finished, but DVC has not recorded its results: they are written again")
        self.tracked.log_dataset(self.training.tokens.manifest, split="train")
        self.tracked.log_metrics(
            {"reference/uniform_loss": reference.uniform, "reference/unigram_loss": reference.unigram}
        )
        self.tracked.set_tags({"loss_reference": "\n".join(reference.lines())})
        self.log.attach(self.progress)
        warnings = Warnings(reference, self.tracked, self.log.say, params.model.init)
        status_file = (StatusFile(self.tracked, warnings),) if "GPT2_FLOW_RUN_ID" in os.environ else ()
        trainer.listeners = (self.log, self.progress, MLflowRows(self.tracked), warnings, *status_file)
        return self

    def fit(self) -> TrainResult:
        """Train until a stop rule or an interruption; the log says which."""
        result = self.trainer.fit()
        self.progress.close()
        reason = describe_stop(result.stop_reason, self.training.params)
        interrupted = result.stop_reason == "interrupted"
        saved = f"; {describe_saved(self.trainer.saved_step, result.steps)}" if interrupted else ""
        self.log.say(f"stopped: {reason} after {result.steps:,} steps, {result.wall_seconds:.0f} s{saved}")
        self._status = "KILLED" if interrupted else "FAILED"
        return result

    def record(self) -> dict[str, Any]:
        """The content of models/run.json."""
        experiment = self.training.params.run.experiment
        facts = environment(self.training.run.device, self.training.threads)
        return {**self.tracked.record(experiment), "environment": facts}

    def log_result(self, metrics: dict[str, Any]) -> None:
        """Log the metrics and the hash of models/best, after which the MLflow run counts as finished."""
        self.tracked.log_metrics(
            {key: float(value) for key, value in metrics.items() if isinstance(value, bool | int | float)}
        )
        self.tracked.set_tags({"weights_sha256": read_json(paths.RUN)["weights_sha256"]})
        self._status = "FINISHED"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.log.say(f"stopped: {failure_line('finetune', error) or type(error).__name__}")
        self.progress.close()
        self.log.close()
        self.tracked.log_artifact(self.log.path, "logs")
        self.tracked.finish("FAILED" if error else self._status)

    def _start_over(self) -> None:
        """Say why no checkpoint is resumed, and remove those of an earlier run with the same settings."""
        trainer = self.trainer
        if self.training.params.train.resume and (line := unfinished_run(trainer.checkpoints, trainer.fingerprint)):
            self.log.say(line)
        if start := initial_weights_sha256(self.training.params):
            self.tracked.set_tags({INITIAL_WEIGHTS_TAG: start})
        trainer.start_over()
        trainer.extra = {"run_id": self.tracked.run_id, "length": length_of(self.training.params), **recorded()}

    def _resume(self) -> None:
        """Note what DVC knows now, and whether another length, so another schedule, was planned until here."""
        extra, length = self.trainer.extra, length_of(self.training.params)
        if extra.get("length", length) != length:
            extra["extended_at"] = [*extra.get("extended_at", []), self.trainer.step]
        extra |= {"length": length, **recorded()}
        if extended := extra.get("extended_at"):
            self.log.say(
                f"another length was planned until step {extended[-1]:,}: the learning rates were those of that "
                "schedule, so the weights will not be those of one run of this length"
            )


def length_of(params: Params) -> dict[str, Any]:
    """The settings that the learning rate's schedule follows."""
    return {"max_steps": params.train.stop.max_steps, "max_epochs": params.train.stop.max_epochs}


def setup_lines(training: Training) -> list[str]:
    """What the run computes with, what it starts from, and on how many tokens."""
    params, trainer, run = training.params, training.trainer, training.run
    train, split = params.train, trainer.train_batches.split
    rate = f"learning rate {train.learning_rate:g}"
    if train.optimizer == "muon":
        rate += f" ({train.muon_learning_rate:g} for the blocks' matrices)"
    return [
        f"device {run.device} ({training.threads} threads), precision {run.precision}: {run.reason}",
        f"step: {trainer.train_step}",
        f"recipe {train.recipe}: {train.optimizer}, {rate}, {train.schedule}, "
        f"{train.batch_size} x {train.sequence_length} tokens a step",
        f"model: {_start_of(params)}, {trainer.model.num_parameters():,} parameters",
        f"tokens: {training.tokens.manifest['tokens']:,} in all, {len(split):,} in the train split",
        f"batches an epoch: {trainer.epochs.batches:,.2f}".removesuffix(".00"),
        *example_lines(params, trainer.train_batches, training.tokens.manifest),
    ]


def loss_reference(trainer: Trainer, source: str) -> LossReference:
    """Losses to compare the run with; `source` is the value of data.source."""
    return LossReference(
        vocab_size=trainer.model.config.vocab_size,
        unigram=unigram_loss(trainer.train_batches.split, FREQUENCY_TOKENS),
        published=published_for(trainer.model.num_parameters(), source),
    )


def run_name(params: Params) -> str:
    # The time distinguishes runs of the same model and text.
    made = f"{Path(_start_of(params)).name}-{Path(params.data.source).stem}-{datetime.now():%Y%m%d-%H%M}"
    name = made if params.run.name is None else params.run.name
    return f"{name}-seed{params.run.seed}" if params.run.seeds > 1 else name


def train_metrics(training: Training, result: TrainResult) -> dict[str, Any]:
    """The content of reports/metrics/train.json."""
    trainer = training.trainer
    return {
        **vars(result),
        "target_loss": training.params.train.stop.target_loss,
        "extended_at": max(trainer.extra.get("extended_at", []), default=None),
        "best_by": trainer.config.best_by,
        "eval_batches": trainer.config.eval_batches,
        "device": str(training.run.device),
        "precision": training.run.precision,
        "n_params": trainer.model.num_parameters(),
        "train_tokens": len(trainer.train_batches.split),
        "batches_per_epoch": trainer.batches_per_epoch,
    }


def describe_stop(reason: str, params: Params) -> str:
    stop = params.train.stop
    return {
        "target_loss": f"target loss {stop.target_loss} reached on {stop.metric}",
        "patience": f"no new best in {stop.patience} evaluations",
        "max_steps": f"max_steps {stop.max_steps} reached",
        "max_epochs": f"max_epochs {stop.max_epochs} reached",
        "interrupted": "interrupted",
    }[reason]


def describe_saved(saved_step: int | None, step: int) -> str:
    """The newest checkpoint of a run interrupted at `step`: on a full disk the last saves may have failed."""
    if saved_step is None:
        return "no checkpoint could be saved"
    return "the checkpoint is saved" if saved_step == step else f"the newest checkpoint is at step {saved_step:,}"


def _start_of(params: Params) -> str:
    return params.model.preset if params.model.init == "scratch" else params.model.init
