"""Stage `finetune`: data/tokens -> models/best, models/run.json, the training history and its metrics."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process(large_tensors=True)

import hashlib
import json
import os
import shutil
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError
from gpt2core.storage.files import replaced_directory, sha256_file, with_home, write_json
from gpt2ops import paths
from gpt2ops.params.schema import Params, check_sequence_length, load_params
from gpt2ops.pipeline.code_version import code_sha256
from gpt2ops.process.failures import failure_line
from gpt2ops.process.signals import Interruption, spawn_ranks
from gpt2ops.process.stage import run_stage
from gpt2ops.training.environment import environment
from gpt2ops.training.fingerprint import left_behind
from gpt2ops.training.initial_model import initial_model
from gpt2ops.training.memory import check_memory

# What makes a checkpoint another run's: all that decides the weights, but not when to stop or what to log.
NEUTRAL_TRAIN_KEYS = {
    "recipe",
    "stop",
    "log_interval",
    "checkpoint_interval",
    "keep_last",
    "resume",
    "sample_prompt",
    "sample_tokens",
    "sample_interval",
}
# Settings that came after the first release, with what a run did before: checkpoints of then still fit.
LATER_KEYS = {
    "train.spike_rollback": None,
    "train.cuda_graph": "auto",
    "kernels": "auto",
    "model.activation_function": "gelu_new",
    "model.tie_word_embeddings": True,
}


def main() -> None:
    params = load_params()
    if params.run.nproc_per_node > 1 and "RANK" not in os.environ:
        spawn_ranks(params.run.nproc_per_node, "tasks.finetune")
    with Interruption() as interruption:
        result = train(params, interruption)
    if result == "interrupted":
        sys.exit(128 + (interruption.signal or signal.SIGTERM))


def train(params: Params, interruption: Interruption) -> str:
    """Train, write the outputs where the run has ended by itself; returns the stop reason."""
    from gpt2core import runtime
    from gpt2core.data.tokens import open_tokens
    from gpt2core.kernels.switch import use_own_kernels
    from gpt2core.training.trainer import Trainer
    from gpt2ops.training.log import MLflowRows, Progress, TrainingLog
    from gpt2ops.training.log_reference import log_reference, loss_reference
    from gpt2ops.training.watch import StatusFile, Warnings

    first = int(os.environ.get("RANK", "0")) == 0
    threads = runtime.set_threads(params.run.threads)
    run = runtime.pick_runtime(params.run.device, params.run.precision)
    runtime.set_determinism(params.run.deterministic)
    use_own_kernels(params.run.kernels == "auto")
    keep_what_is_compiled()
    if "RANK" in os.environ:
        runtime.join_process_group(run.device)
    tokens = open_tokens(paths.TOKENS)
    if first:
        tokens.verify()
    batches = open_batches(params, tokens.split("train"))
    check_start_fits(params, run.device.type)
    model = initial_model(params)
    check_sequence_length(params.train.sequence_length, model.config.block_size)
    fingerprint = fingerprint_of(params, model.config.as_dict(), tokens.manifest["sha256"], run.precision)
    trainer = Trainer(
        model,
        batches,
        tokens.split("val"),
        trainer_config(params, run.device.type, len(tokens.split("val"))),
        run=run,
        checkpoints=checkpoints_of(fingerprint),
        fingerprint=fingerprint,
        interrupted=interruption.requested,
    )
    resumed = params.train.resume and trainer.resume(was_lost)
    if not first:
        return trainer.fit().stop_reason

    from gpt2ops.tracking.api import start_run

    log, progress = TrainingLog(), Progress()
    log.say(f"device {run.device} ({threads} threads), precision {run.precision}: {run.reason}")
    log.say(f"step: {trainer.train_step}")
    log.say(f"recipe {params.train.recipe}: {in_words(params)}")
    start = params.model.preset if params.model.init == "scratch" else params.model.init
    log.say(f"model: {start}, {model.num_parameters():,} parameters")
    log.say(f"tokens: {tokens.manifest['tokens']:,} loaded, of them {len(batches.split):,} to train on")
    log.say(f"batches an epoch: {batches.batches_per_epoch:,}")
    reference = loss_reference(model, batches.split, params.data.source)
    log.compare_with(reference)
    tracked = start_run(
        params,
        run_name(params),
        resume_run_id=trainer.extra.get("run_id"),
        resume_key=trainer.checkpoints.name if params.train.resume else None,
    )
    if not resumed:
        if params.train.resume and (line := left_behind(trainer.checkpoints, fingerprint)):
            log.say(line)
        trainer.start_over()
        trainer.extra = {"run_id": tracked.run_id, **recorded()}
    if trainer.ended:
        log.say("this run had come to its end, but DVC has not recorded its results: they are written again")
    tracked.log_dataset(tokens.manifest, split="train")
    log_reference(reference, tracked)
    log.attach(progress)
    warnings = Warnings(reference, tracked, log.say, params.model.init)
    status_file = (StatusFile(tracked, warnings),) if "GPT2_FLOW_RUN_ID" in os.environ else ()
    trainer.listeners = (log, progress, MLflowRows(tracked), warnings, *status_file)
    status = "FAILED"
    try:
        result = trainer.fit()
        progress.close()
        reason = describe_stop(result.stop_reason, params)
        interrupted = result.stop_reason == "interrupted"
        kept = f"; {what_is_kept(trainer.saved_step, result.steps)}" if interrupted else ""
        log.say(f"stopped: {reason} after {result.steps:,} steps, {result.wall_seconds:.0f} s{kept}")
        status = "KILLED" if interrupted else "RUNNING"
        if status == "RUNNING":
            metrics = {
                **vars(result),
                "target_loss": params.train.stop.target_loss,
                "best_by": trainer.config.best_by,
                "device": str(run.device),
                "precision": run.precision,
                "n_params": model.num_parameters(),
                "train_tokens": len(batches.split),
                "batches_per_epoch": batches.batches_per_epoch,
            }
            record = {**tracked.record(params.run.experiment), "environment": environment(run.device, threads)}
            write_outputs(trainer.best_directory, record, trainer.history, metrics)
            tracked.log_metrics(numbers(metrics))
            tracked.set_tags({"weights_sha256": sha256_file(paths.BEST_MODEL / "model.safetensors")})
            status = "FINISHED"
    except Exception as error:
        log.say(f"stopped: {failure_line('finetune', error) or type(error).__name__}")
        raise
    finally:
        progress.close()
        log.close()
        tracked.log_artifact(log.path, "logs")
        tracked.finish(status)
    if interrupted and "GPT2_COMMAND" not in os.environ:  # which says itself how to go on
        how = "starts again" if trainer.saved_step is None else "goes on from it"
        print(f"interrupted{kept}, and the next `dvc repro` {how}", file=sys.stderr, flush=True)
    return result.stop_reason


def keep_what_is_compiled() -> None:
    """So that the next run starts fast: torch's own place for it is emptied when a machine starts."""
    place = with_home("~/.cache/gpt2-workflow/compiled")
    if place.is_absolute():  # an account may have no home
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(place))


def check_start_fits(params: Params, device: str) -> None:
    """Raises UserError for new weights too large for this machine; others exist, so some machine held them."""
    if params.model.init != "scratch":
        return
    share = params.train.batch_size // params.run.nproc_per_node
    check_memory(
        GPTConfig.from_preset(params.model.preset, **params.model.overrides),
        device=device,
        optimizer=params.train.optimizer,
        micro_tokens=(params.train.micro_batch_size or share) * params.train.sequence_length,
    )


def open_batches(params: Params, split: Any) -> Any:
    from gpt2core.data.batches import Batches

    return Batches(
        split,
        batch_size=params.train.batch_size,
        sequence_length=params.train.sequence_length,
        sampler=params.train.sampler,
        stride=params.train.stride,
        seed=params.run.seed,
    )


def trainer_config(params: Params, device: str, val_tokens: int) -> Any:
    """The library's settings from `params.train`."""
    from gpt2core.tokenizer import Tokenizer
    from gpt2core.training.config import TrainerConfig

    tokenizer = Tokenizer()
    train = params.train.model_dump(
        exclude={"recipe", "stop", "batch_size", "sequence_length", "sampler", "stride", "resume"}
    )
    train["eval_interval"] = None if train["eval_interval"] == "epoch" else train["eval_interval"]
    train["sample_prompt"] = tuple(tokenizer.encode(params.train.sample_prompt)) or (tokenizer.eot_id,)
    train["best_by"] = params.train.best_by
    if params.train.best_by == "auto":
        held_out = val_tokens > 1 and not (params.train.stop.target_loss and params.train.stop.metric != "val")
        train["best_by"] = "val_loss" if held_out else "train_loss"
    if (
        params.train.compile == "on"
        and device == "cpu"
        and not (shutil.which("g++") or shutil.which("clang++") or shutil.which("cl"))
    ):
        raise UserError(
            "train.compile is 'on', but no C++ compiler (g++, clang++ or cl) was found; install one or set it to off."
        )
    return TrainerConfig(**train, **params.train.stop.model_dump(), seed=params.run.seed)


def fingerprint_of(params: Params, config: dict[str, Any], data_sha256: str, precision: str) -> dict[str, Any]:
    train = params.train.model_dump()
    fingerprint = {
        "data_sha256": data_sha256,
        "seed": params.run.seed,
        "precision": precision,
        "kernels": params.run.kernels,
        "model.init": params.model.init,
        **{f"model.{key}": value for key, value in config.items()},
        **{f"train.{key}": value for key, value in train.items() if key not in NEUTRAL_TRAIN_KEYS},
    }
    return {key: value for key, value in fingerprint.items() if LATER_KEYS.get(key, ...) != value}


def checkpoints_of(fingerprint: dict[str, Any]) -> Any:
    """A folder of its own for each kind of run, so that going back to earlier params finds its checkpoints."""
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    return paths.CHECKPOINTS / digest[:12]


def in_words(params: Params) -> str:
    train = params.train
    rate = f"learning rate {train.learning_rate:g}"
    if train.optimizer == "muon":
        rate += f", of the blocks' matrices {train.muon_learning_rate:g}"
    return f"{train.optimizer}, {rate}, {train.schedule}, {train.batch_size} x {train.sequence_length} tokens a step"


def recorded() -> dict[str, str]:
    """What DVC has recorded of this stage, and the code that runs it."""
    try:
        entry = yaml.safe_load(paths.DVC_LOCK.read_text(encoding="utf-8"))["stages"]["finetune"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        entry = None
    return {
        "recorded_sha256": hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest(),
        "code_sha256": code_sha256(),
    }


def was_lost(extra: dict[str, Any]) -> bool:
    """Whether a training that has ended was killed before DVC took its results: nothing was recorded since it began.

    Else the stage runs because somebody wants it trained anew, or because the code has changed.
    """
    now = recorded()
    return {key: extra.get(key) for key in now} == now


def run_name(params: Params) -> str:
    if params.run.name is not None:
        return params.run.name
    start = params.model.preset if params.model.init == "scratch" else params.model.init
    # The time tells runs of the same kind apart where they are compared.
    return f"{Path(start).name}-{Path(params.data.source).stem}-{datetime.now():%Y%m%d-%H%M}"


def write_outputs(best: Any, record: dict[str, Any], history: list[Any], metrics: dict[str, Any]) -> None:
    from gpt2core.tokenizer import Tokenizer

    with replaced_directory(paths.BEST_MODEL) as partial:
        shutil.copytree(best, partial, dirs_exist_ok=True)
        Tokenizer().save(partial)
    write_json(paths.HISTORY, history)
    write_json(paths.TRAIN_METRICS, metrics)
    write_json(paths.RUN, record)


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if isinstance(value, bool | int | float)}


def describe_stop(reason: str, params: Params) -> str:
    stop = params.train.stop
    return {
        "target_loss": f"target loss {stop.target_loss} reached on {stop.metric}",
        "patience": f"no new best in {stop.patience} evaluations",
        "max_steps": f"max_steps {stop.max_steps} reached",
        "max_epochs": f"max_epochs {stop.max_epochs} reached",
        "interrupted": "interrupted",
    }[reason]


def what_is_kept(saved_step: int | None, step: int) -> str:
    """What is on the disk of a run that was interrupted at `step`: its last saves may have met a full one."""
    if saved_step is None:
        return "no checkpoint could be saved"
    return "the checkpoint is saved" if saved_step == step else f"the newest checkpoint is of step {saved_step:,}"


if __name__ == "__main__":
    run_stage("finetune", main)
