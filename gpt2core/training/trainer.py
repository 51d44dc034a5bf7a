"""The training loop: step, log, evaluate, stop rules, checkpoint; it reports outward through events only."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gpt2core import runtime
from gpt2core.data.batches import Batches
from gpt2core.errors import UserError
from gpt2core.evaluation.scores import Tokens
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.training import checkpoint as ckpt
from gpt2core.training.config import TrainerConfig
from gpt2core.training.events import ROW_KEYS, Row, TrainerEvents, TrainResult
from gpt2core.training.graphed_step import make_train_step
from gpt2core.training.saver import Keeper
from gpt2core.training.spikes import Health, HealthState
from gpt2core.training.step import Taken
from gpt2core.training.stopping import LossAverage, StopState, lower, note_skipped_step
from gpt2core.training.validation import Validation

STOP_SETTINGS = ("target_loss", "metric", "patience", "max_steps", "max_epochs")


class Trainer:
    """Trains `model` on `train`, a pure function of its arguments: stopped and resumed it gives the same bits."""

    def __init__(
        self,
        model: GPT,
        train: Batches,
        val: Tokens | None,
        config: TrainerConfig,
        *,
        run: Runtime,
        checkpoints: Path,
        fingerprint: dict[str, Any],
        listeners: Sequence[TrainerEvents] = (),
        interrupted: Callable[[], bool] = lambda: False,
        background_saves: bool | None = None,
    ) -> None:
        """`fingerprint` says what a checkpoint belongs to; `interrupted` is asked between micro-steps.

        `background_saves`: a thread writes the checkpoints; None: where a GPU trains.
        """
        self.model, self.train_batches, self.config, self.run = model, train, config, run
        self.validation = Validation(
            model,
            train.split,
            val,
            run,
            batch_size=config.micro_batch_size or train.batch_size,
            sequence_length=train.sequence_length,
        )
        self.checkpoints, self.fingerprint = checkpoints, fingerprint
        self.listeners = listeners if runtime.rank() == 0 else ()
        self.interrupted = interrupted
        self._early_notes: list[str] = []  # of before `fit`, when nobody listens yet
        self.extra: dict[str, Any] = {}  # what a caller wants back on resume, such as a run id
        self.batch_size, self.sequence_length = train.batch_size, train.sequence_length
        self.tokens_per_step = self.batch_size * self.sequence_length
        self.total_steps = self._total_steps()
        self.eval_interval = config.eval_interval or train.batches_per_epoch
        self.step = 0
        self.ended: str | None = None  # why, where the run resumed had come to its end
        self.history: list[Row] = []
        self._interval_losses: list[float] = []  # since the last row
        self._full_loss: float | None = None  # of the full pass, where one was made with the weights as they are
        self.stop = StopState()
        self.average = LossAverage()
        self.health = Health(config.spike_rollback)
        self.wall_seconds = 0.0
        background = run.device.type == "cuda" if background_saves is None else background_saves
        self.keeper = Keeper(checkpoints, config.keep_last, background=background, note=self._note)
        self.saved_step: int | None = None  # of the newest checkpoint that is on the disk
        self.train_step = make_train_step(model, config, run, self.total_steps, self.tokens_per_step)

    # -- the loop ------------------------------------------------------------------------------------------------

    def fit(self) -> TrainResult:
        """Train until a stop rule says so. Raises UserError when the loss stays not finite, or never was."""
        self.train_step.prepare()
        self._emit("on_start", self)
        for line in self._early_notes:
            self._note(line)
        self._interval_started = self._segment_started = time.perf_counter()
        self._segment_wall = self.wall_seconds
        reason = self.ended
        if self.saved_step is None:  # what a run that must go back before its first checkpoint goes back to
            self._save()
        while reason is None and self.step < self.total_steps:
            taken = self._train_step()
            self.keeper.poll()
            if taken is None:
                reason = "interrupted"
                break
            if taken.verdict.go_back and self._go_back(taken.verdict.go_back):
                continue
            self.step += 1
            self.wall_seconds = self._segment_wall + time.perf_counter() - self._segment_started
            reason = self._after_step(taken.train_loss, taken.grad_norm)
            if reason is None and self.step % self.config.checkpoint_interval == 0:
                self._save()
        return self._finish(reason or self._limit_reason())

    def _train_step(self) -> Taken | None:
        """One update; None where the run was interrupted."""
        batch = self.train_batches.batch(self.step)
        self._full_loss = None
        taken = self.train_step.take(self.step, batch, self.health, self.interrupted)
        if taken is None:
            return None
        train_loss, _, verdict = taken
        if verdict.note is not None:
            self._note(verdict.note)
        if verdict.finite:
            self.stop.skipped_in_a_row = 0
            return taken
        if not (self.train_step.finds_its_scale and math.isfinite(train_loss)):
            note_skipped_step(self.stop, self.step + 1, self.step)
        if self.step and self.health.may_go_back and not self.train_step.weights_are_finite():
            verdict = replace(verdict, go_back=(self.step - 1,))  # its update has made them so
        return taken._replace(verdict=verdict)

    def _go_back(self, batches: tuple[int, ...]) -> bool:
        """To the newest checkpoint of before `batches`, which are left out from then on; False where there is none."""
        self.keeper.poll(leave=0)
        found, damaged = self._newest_checkpoint(at_most=batches[0])
        for line in damaged:
            self._note(line)
        if found is None:
            return False
        left_out, rollbacks, step = (*self.health.state.left_out, *batches), self.health.state.rollbacks + 1, self.step
        self._restore(found)
        self.health.pass_by(left_out, rollbacks)
        if runtime.rank() == 0:
            self.keeper.remove_after(self.step)
        self._interval_started = time.perf_counter()
        named = f"batch {batches[0]}" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]}"
        self._note(f"step {step + 1}: back to the checkpoint at step {self.step}; from there {named} will be passed by")
        return True

    def _after_step(self, train_loss: float, grad_norm: float | None) -> str | None:
        """Log, evaluate and apply the stop rules; returns why to stop, or None."""
        config, step = self.config, self.step
        finite = math.isfinite(train_loss)
        if finite:
            self.average.add(train_loss)
            self._interval_losses.append(train_loss)
            if lower(train_loss, self.stop.best_train_loss):
                self.stop.best_train_loss = train_loss
        self._emit("on_step", self, train_loss)
        reason = self._batch_target(train_loss)
        ending = reason is not None or step == self.total_steps
        row: Row = {}
        if step % config.log_interval == 0 or ending:
            row = self._log_row(grad_norm)
        if step % self.eval_interval == 0 or ending:
            evaluated = self._evaluate()
            reason = self._after_evaluation(evaluated) or reason
            row = {**self._position(), **row, **evaluated}
        if self.config.sample_interval == "epoch" and step % self.train_batches.batches_per_epoch == 0 and finite:
            self._sample()
        if row:
            row = dict.fromkeys(ROW_KEYS) | row
            self.history.append(row)
            self._emit("on_row", row)
        return reason

    # -- logging and evaluating ----------------------------------------------------------------------------------

    def _position(self) -> Row:
        return {"step": self.step, "tokens_seen": self.tokens_seen, "epoch": round(self.epoch, 4)}

    def _log_row(self, grad_norm: float | None) -> Row:
        now = time.perf_counter()
        losses, seconds = self._interval_losses, max(1e-9, now - self._interval_started)
        row: Row = {
            **self._position(),
            "train_loss": sum(losses) / len(losses) if losses else None,
            "learning_rate": self.learning_rate,
            "grad_norm": grad_norm if grad_norm is not None and math.isfinite(grad_norm) else None,
            "tokens_per_second": len(losses) * self.tokens_per_step / seconds,
        }
        self._interval_losses, self._interval_started = [], now
        return row

    def _evaluate(self) -> Row:
        """Score some of train and val without dropout, and write a sample text."""
        started_at = time.perf_counter()
        tokens = self.config.eval_batches and self.config.eval_batches * self.tokens_per_step + 1
        row = {**self._position(), **self.validation.row(tokens)}
        self._emit("on_evaluation", row)
        # Weights that give no finite loss give no text either.
        if self.config.sample_interval == "evaluation" and row["train_eval_loss"] is not None:
            self._sample()
        self._interval_started += time.perf_counter() - started_at  # evaluation is not training speed
        return row

    def _full_pass(self) -> float:
        """Mean loss over train; a pass is dear, so one for all who ask at the same weights."""
        if self._full_loss is None:
            started_at = time.perf_counter()
            self._full_loss = self.validation.full_pass()
            self._interval_started += time.perf_counter() - started_at
        return self._full_loss

    def _sample(self) -> None:
        if runtime.rank() == 0 and self.config.sample_tokens:
            sample = self.validation.sample(self.config.sample_prompt, self.config.sample_tokens, self.config.seed)
            if sample:
                self._emit("on_sample", self.step, sample)

    # -- stop rules ----------------------------------------------------------------------------------------------

    def _batch_target(self, train_loss: float) -> str | None:
        """Hold a batch and the moving average against the target."""
        target = self.config.target_loss
        if target is None:
            return None
        if train_loss <= target and self.stop.batch_target_step is None:
            self.stop.batch_target_step = self.step
            self.stop.batch_target_loss_full = self._full_pass()
            self._note(
                f"step {self.step}: batch loss {train_loss:.5f} is at or under the target {target:g}; "
                f"a full pass over train gives {self.stop.batch_target_loss_full:.5f}"
            )
        if self.config.metric == "train_batch" and train_loss <= target:
            return "target_loss"
        if self.config.metric == "train_ema" and self.average.settled and self.average.value <= target:
            return "target_loss"
        return None

    def _after_evaluation(self, row: Row) -> str | None:
        """Keep the best, hold full pass and val against the target, count patience."""
        target, metric = self.config.target_loss, self.config.metric
        val_loss, train_eval_loss = row.get("val_loss"), row.get("train_eval_loss")
        if val_loss is not None and lower(val_loss, self.stop.best_val_loss):
            self.stop.best_val_loss = val_loss
        score = val_loss if self.config.best_by == "val_loss" and val_loss is not None else train_eval_loss
        if score is not None and math.isfinite(score) and lower(score, self.stop.best_score):
            self.stop.best_score, self.stop.best_step = score, self.step
            self.stop.evaluations_without_best = 0
            self._save_best(score)
        else:
            self.stop.evaluations_without_best += 1
        if target is not None and metric == "val" and val_loss is not None and val_loss <= target:
            return "target_loss"
        # A full pass is dear: only once the part of train just scored is near the target.
        near = train_eval_loss is not None and target is not None and train_eval_loss <= 1.05 * target
        if target is not None and metric == "train_full" and near and self._full_pass() <= target:
            return "target_loss"
        if self.config.patience is not None and self.stop.evaluations_without_best >= self.config.patience:
            return "patience"
        return None

    def _limit_reason(self) -> str:
        by_epochs = self.config.max_steps is None or self.total_steps < self.config.max_steps
        return "max_epochs" if by_epochs else "max_steps"

    def _finish(self, reason: str) -> TrainResult:
        target = self.config.target_loss
        if reason != "interrupted" and self.stop.best_step is None:
            raise UserError(
                "no evaluation gave a finite loss, so there is no model to keep; lower train.learning_rate, set "
                "run.precision to fp32, or check the weights that model.init names."
            )
        train_loss_full = None
        if reason == "target_loss":
            train_loss_full = self._full_pass()
            self._note(f"full pass over train: {train_loss_full:.5f}, target {target:g} on {self.config.metric}")
        self.keeper.poll(leave=0)
        if reason != "interrupted":
            self._save(finished=reason)
        elif self.saved_step != self.step:
            self._save()
        self.keeper.finish()
        return TrainResult(
            steps=self.step,
            tokens_seen=self.tokens_seen,
            epochs=self.epoch,
            train_loss=self.average.value if self.average.weight else None,
            best_train_loss=self.stop.best_train_loss,
            train_loss_full=train_loss_full,
            batch_target_step=self.stop.batch_target_step,
            batch_target_loss_full=self.stop.batch_target_loss_full,
            val_loss=self._last("val_loss"),
            best_val_loss=self.stop.best_val_loss,
            best_step=self.stop.best_step,
            target_reached=None if target is None else reason == "target_loss",
            stop_reason=reason,
            tokens_per_second=self.tokens_seen / self.wall_seconds if self.wall_seconds else 0.0,
            wall_seconds=self.wall_seconds,
        )

    # -- checkpoints ---------------------------------------------------------------------------------------------

    @property
    def best_directory(self) -> Path:
        return self.keeper.best_directory

    def resume(self, was_lost: Callable[[dict[str, Any]], bool] = lambda extra: False) -> bool:
        """Go on from the newest whole checkpoint of this very run; returns whether there was one.

        A run that has ended is not gone on with, unless its stop settings have changed since, or its result never
        arrived: then `fit` only gives the result again. `was_lost` is asked so, with the run's `extra`.
        Raises UserError for a checkpoint of another run.
        """
        found, damaged = self._newest_checkpoint()
        self._early_notes += damaged
        if found is None:
            return False
        differing = [key for key, value in self.fingerprint.items() if found.state["fingerprint"].get(key) != value]
        if differing:
            raise UserError(f"{found.directory} is of another run: {', '.join(differing)} differ; move it away.")
        ended, same = found.state["finished"], found.state["stop_settings"] == self._stop_settings
        if ended is not None and same and was_lost(found.state["extra"]):
            self.ended = ended
        elif ended is not None and (same or found.state["step"] >= self.total_steps):
            return False
        self._restore(found)
        return True

    def start_over(self) -> None:
        """Begin anew: an earlier run's checkpoints of the same settings go, but are set aside where it went further."""
        if runtime.rank() != 0:
            return
        directories = ckpt.step_directories(self.checkpoints)
        if directories and ckpt.step_of(directories[-1]) > self.total_steps:
            aside = self.checkpoints.with_name(f"{self.checkpoints.name}-{directories[-1].name}")
            shutil.rmtree(aside, ignore_errors=True)
            self.checkpoints.rename(aside)
            self._early_notes.append(
                f"this run ends before the earlier one did; that one's checkpoints are kept in {aside}"
            )
            return
        for directory in directories:
            shutil.rmtree(directory)

    def _newest_checkpoint(self, at_most: int | None = None) -> tuple[ckpt.Checkpoint | None, list[str]]:
        if runtime.rank() != 0:
            dist.barrier()  # the first rank sets damaged ones aside
        found = ckpt.newest_valid(self.checkpoints, at_most)
        if runtime.rank() == 0 and dist.is_initialized():
            dist.barrier()
        return found

    def _restore(self, found: ckpt.Checkpoint) -> None:
        state = found.state
        self.train_step.restore(GPT.from_pretrained(found.directory), found.optimizer, state["scaler"])
        self.health.state = HealthState(**state.get("health", {}))  # checkpoints of before have none
        self.saved_step, self._full_loss = state["step"], None
        self.step, self.history, self.extra = state["step"], state["history"], state["extra"]
        self.stop, self.average = StopState(**state["stop"]), LossAverage(**state["average"])
        if not self.best_directory.is_dir():  # somebody removed it: the next evaluation is the best there is
            self.stop.best_score = self.stop.best_step = None
        self.wall_seconds = state["wall_seconds"]
        self._interval_losses = state["interval_losses"]

    def _save(self, finished: str | None = None) -> None:
        if runtime.rank() != 0:
            return
        if not self.train_step.weights_are_finite():
            self._note(f"step {self.step}: the weights are not finite, so there is no checkpoint")
            return
        self._emit("before_checkpoint", self.step)
        state = {  # all of it copied: a thread may write it while training goes on
            "fingerprint": self.fingerprint,
            "step": self.step,
            "stop": self.stop.as_dict(),
            "average": {"total": self.average.total, "weight": self.average.weight},
            "health": self.health.state.as_dict(),
            "interval_losses": list(self._interval_losses),
            "wall_seconds": self.wall_seconds,
            "scaler": self.train_step.scaler.state_dict(),
            "finished": finished,
            "stop_settings": self._stop_settings,
            "extra": self.extra,
            "history": list(self.history),
        }
        step = self.step

        def done(directory: Path) -> None:
            self.saved_step = step
            self._emit("on_checkpoint", step, directory)

        self.keeper.save(step, self.model, self.train_step.optimizer_tensors(), state, done)

    def _save_best(self, score: float) -> None:
        if runtime.rank() == 0:
            said = ("on_best", self.step, self.config.best_by, score, self.best_directory)
            self.keeper.save_best(self.step, self.model, lambda: self._emit(*said))

    @property
    def _stop_settings(self) -> dict[str, Any]:
        return {key: getattr(self.config, key) for key in STOP_SETTINGS}

    # -- small things --------------------------------------------------------------------------------------------

    @property
    def tokens_seen(self) -> int:
        return self.step * self.tokens_per_step

    @property
    def epoch(self) -> float:
        return self.step / self.train_batches.batches_per_epoch

    @property
    def learning_rate(self) -> float:
        """Of the last update."""
        return self.train_step.learning_rate

    def _last(self, key: str) -> float | None:
        """The newest value of `key` in the history."""
        return next((row[key] for row in reversed(self.history) if row[key] is not None), None)

    def _total_steps(self) -> int:
        limits = []
        if self.config.max_steps is not None:
            limits.append(self.config.max_steps)
        if self.config.max_epochs is not None:
            limits.append(max(1, round(self.config.max_epochs * self.train_batches.batches_per_epoch)))
        return min(limits)

    def _note(self, message: str) -> None:
        self._emit("on_note", message)

    def _emit(self, event: str, *arguments: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*arguments)
