"""The training loop: step, log, evaluate, apply stop rules, save; it reports through events only."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2core import runtime
from gpt2core.data.batches import Epochs
from gpt2core.data.examples.batches import AnyBatches
from gpt2core.errors import UserError
from gpt2core.evaluation.scores import Tokens
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.training import checkpoint as ckpt
from gpt2core.training.config import TrainerConfig
from gpt2core.training.events import ROW_KEYS, IntervalMeter, Row, TrainerEvents, TrainResult
from gpt2core.training.graphed_step import make_train_step
from gpt2core.training.saver import CheckpointWriter
from gpt2core.training.spikes import LossMonitor, MonitorState
from gpt2core.training.step import StepResult
from gpt2core.training.stopping import StopRules, total_steps
from gpt2core.training.validation import Validation


class Trainer:
    """Trains `model` on `train`, a pure function of its arguments: interrupted and resumed, it gives the same bits."""

    def __init__(
        self,
        model: GPT,
        train: AnyBatches,
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
        """`fingerprint` identifies the run a checkpoint belongs to; `interrupted` is called between micro-steps.

        `background_saves`: a thread writes the checkpoints; None: only when training on a GPU.
        """
        self.model, self.train_batches, self.config, self.run = model, train, config, run
        self.batch_size, self.sequence_length = train.batch_size, train.sequence_length
        self.tokens_per_step = train.tokens_per_step
        self.epochs = Epochs(train.windows_per_epoch, self.batch_size)
        self.batches_per_epoch = round(self.epochs.batches)
        self.total_steps = total_steps(config, self.epochs.batches)
        self.validation = Validation(model, train, val, run, config.micro_batch_size or self.batch_size)
        self.checkpoints, self.fingerprint = checkpoints, fingerprint
        self.listeners, self.interrupted = listeners if runtime.rank() == 0 else (), interrupted
        self._early_notes: list[str] = []  # before `fit`, when there are no listeners yet
        self.extra: dict[str, Any] = {}  # a caller's values to restore on resume, such as a run id
        self.step = 0
        self.ended: str | None = None  # stop reason of a resumed run that had already finished
        self.history: list[Row] = []
        self.interval = IntervalMeter(self.tokens_per_step)
        self._full_loss: float | None = None  # result of a full pass with the current weights
        self.rules = StopRules(config, self._full_pass, self._note)
        self.monitor = LossMonitor(config.spike_rollback)
        self.wall_seconds = 0.0
        background = run.device.type == "cuda" if background_saves is None else background_saves
        self.writer = CheckpointWriter(checkpoints, config.keep_last, background=background, note=self._note)
        self.saved_step: int | None = None  # step of the newest checkpoint on the disk
        size = self.batch_size * self.sequence_length
        self.train_step = make_train_step(model, config, run, self.total_steps, size, train.masked)

    def fit(self) -> TrainResult:
        """Train until a stop rule applies. Raises UserError when the loss stays non-finite, or always was."""
        self.train_step.prepare()
        self._emit("on_start", self)
        for line in self._early_notes:
            self._note(line)
        self.interval.start()
        started_at, earlier_seconds = time.perf_counter(), self.wall_seconds
        reason = self.ended
        if self.saved_step is None:  # for a rollback before the first regular checkpoint
            self._save()
        while reason is None and self.step < self.total_steps:
            result = self._update()
            self.writer.poll()
            if result is None:
                reason = "interrupted"
                break
            if result.decision.rollback and self._roll_back(result.decision.rollback):
                continue
            self.step += 1
            self.wall_seconds = earlier_seconds + time.perf_counter() - started_at
            reason = self._after_step(result.train_loss, result.grad_norm)
            if reason is None and self.step % self.config.checkpoint_interval == 0:
                self._save()
        return self._finish(reason or self.rules.limit_reason(self.total_steps))

    def _update(self) -> StepResult | None:
        """One update; None if the run was interrupted."""
        self._full_loss = None
        result = self.train_step.update(self.step, self.train_batches.batch(self.step), self.monitor, self.interrupted)
        if result is None:
            return None
        decision = result.decision
        if decision.note is not None:
            self._note(decision.note)
        if decision.finite:
            self.rules.state.skipped_in_a_row = 0
            return result
        if not (self.train_step.scale_is_settling and math.isfinite(result.train_loss)):
            self.rules.count_skipped(self.step + 1, self.step)
        if self.step and self.monitor.can_roll_back and not self.train_step.weights_are_finite():
            decision = replace(decision, rollback=(self.step - 1,))  # the last update made them non-finite
        return result._replace(decision=decision)

    def _roll_back(self, batches: tuple[int, ...]) -> bool:
        """Restore the newest checkpoint before `batches` and exclude these; False if there is no such checkpoint."""
        self.writer.poll(leave=0)
        found, damaged = self.writer.newest(at_most=batches[0])
        for line in damaged:
            self._note(line)
        if found is None:
            return False
        step, monitored = self.step, self.monitor.state
        self._restore(found)
        self.monitor.exclude(batches, monitored)
        if runtime.rank() == 0:
            self.writer.remove_after(self.step)
        self.interval.start()
        named = f"batch {batches[0]} is" if len(batches) == 1 else f"batches {batches[0]} to {batches[-1]} are"
        self._note(f"step {step + 1}: rolled back to the checkpoint at step {self.step}; {named} skipped from now on")
        return True

    def _after_step(self, train_loss: float, grad_norm: float) -> str | None:
        """Log, evaluate and apply the stop rules; returns why to stop, or None."""
        config, step = self.config, self.step
        finite = math.isfinite(train_loss)
        if finite:
            self.rules.add(train_loss)
            self.interval.losses.append(train_loss)
        self._emit("on_step", self, train_loss)
        reason = self.rules.after_batch(step, train_loss)
        ending = reason is not None or step == self.total_steps
        row: Row = {}
        if step % config.log_interval == 0 or ending:
            norm = grad_norm if math.isfinite(grad_norm) else None
            row = {"learning_rate": self.learning_rate, "grad_norm": norm, **self.interval.read()}
        if (step % config.eval_interval == 0 if config.eval_interval else self.epochs.end_at(step)) or ending:
            evaluation = self._evaluate()
            if (score := self.rules.new_best(step, evaluation)) is not None:
                self._save_best(score)
            reason = self.rules.after_evaluation(evaluation) or reason
            row |= evaluation
        if config.sample_interval == "epoch" and self.epochs.end_at(step) and finite:
            self._sample()
        if row:
            row = dict.fromkeys(ROW_KEYS) | self._position() | row
            self.history.append(row)
            self._emit("on_row", row)
        return reason

    def _finish(self, reason: str) -> TrainResult:
        """Save the last checkpoint and wait for every save."""
        if reason != "interrupted" and self.rules.state.best_step is None:
            raise UserError(
                rule="no evaluation gave a finite loss, so there is no model to keep",
                remedy="lower {learning_rate}, set {precision} to fp32, or check the weights that the run started from",
            )
        train_loss_full = self.rules.full_loss_at_target(reason)
        self.writer.poll(leave=0)
        finished = None if reason == "interrupted" else reason
        if finished or self.saved_step != self.step:
            self._save(finished)
        self.writer.finish()
        return TrainResult(
            steps=self.step,
            tokens_seen=self.tokens_seen,
            epochs=self.epochs.after(self.step),
            train_loss=self.smoothed_loss,
            train_loss_full=train_loss_full,
            val_loss=next((row["val_loss"] for row in reversed(self.history) if row["val_loss"] is not None), None),
            **self.rules.results(),
            target_reached=None if self.config.target_loss is None else reason == "target_loss",
            stop_reason=reason,
            tokens_per_second=self.tokens_seen / self.wall_seconds if self.wall_seconds else 0.0,
            wall_seconds=self.wall_seconds,
        )

    def _evaluate(self) -> Row:
        """Score part of train and val without dropout, and generate a sample text."""
        tokens = self.config.eval_batches and self.config.eval_batches * self.tokens_per_step + 1
        with self.interval.paused():
            row = {**self._position(), **self.validation.row(tokens)}
            self._emit("on_evaluation", row)
            # Weights without a finite loss cannot generate text.
            if self.config.sample_interval == "evaluation" and row["train_eval_loss"] is not None:
                self._sample()
        return row

    def _full_pass(self) -> float:
        """Mean loss over train, computed at most once for the same weights because it is expensive."""
        if self._full_loss is None:
            with self.interval.paused():
                self._full_loss = self.validation.full_pass()
        return self._full_loss

    def _sample(self) -> None:
        if sample := self.validation.sample(self.config):
            self._emit("on_sample", self.step, sample)

    def resume(self, was_lost: Callable[[dict[str, Any]], bool] = lambda extra: False) -> bool:
        """Load the newest complete checkpoint of this run; returns whether there is one to continue from.

        A finished run is not continued, unless its stop settings have changed, or `was_lost(extra)` says that its
        result was lost: then `fit` only returns the result again. Raises UserError for another run's checkpoint.
        """
        found, damaged = self.writer.newest()
        self._early_notes += damaged
        if found is None:
            return False
        ckpt.check_same_run(found, self.fingerprint)
        ended, same = found.state["finished"], found.state["stop_settings"] == self.rules.settings
        if ended is not None and same and was_lost(found.state["extra"]):
            self.ended = ended
        elif ended is not None and (same or found.state["step"] >= self.total_steps):
            return False
        self._restore(found)
        return True

    def start_over(self) -> None:
        """Remove or move aside an earlier run's checkpoints."""
        if runtime.rank() == 0 and (note := self.writer.start_over(self.total_steps)):
            self._early_notes.append(note)

    def _restore(self, found: ckpt.Checkpoint) -> None:
        state = found.state
        self.train_step.restore(GPT.from_pretrained(found.directory), found.optimizer, state["scaler"])
        self.monitor.state = MonitorState(**state.get("health", {}))  # early checkpoints have none
        self.rules.load(state, best_exists=self.best_directory.is_dir())
        self.saved_step, self._full_loss = state["step"], None
        self.step, self.history, self.extra = state["step"], state["history"], state["extra"]
        self.wall_seconds, self.interval.losses = state["wall_seconds"], state["interval_losses"]

    def _save(self, finished: str | None = None) -> None:
        if runtime.rank() != 0:
            return
        if not self.train_step.weights_are_finite():
            self._note(f"step {self.step}: the weights are not finite, so no checkpoint is saved")
            return
        self._emit("before_checkpoint", self.step)
        state = {  # a copy: a thread may write it while training continues
            "fingerprint": self.fingerprint,
            "step": self.step,
            **self.rules.as_dict(),
            "health": self.monitor.state.as_dict(),
            "interval_losses": list(self.interval.losses),
            "wall_seconds": self.wall_seconds,
            "scaler": self.train_step.scaler.state_dict(),
            "finished": finished,
            "extra": self.extra,
            "history": list(self.history),
        }
        step = self.step

        def done(directory: Path) -> None:
            self.saved_step = step
            self._emit("on_checkpoint", step, directory)

        self.writer.save(step, self.model, self.train_step.optimizer_tensors(), state, done)

    def _save_best(self, score: float) -> None:
        if runtime.rank() == 0:
            event = ("on_best", self.step, self.config.best_by, score, self.best_directory)
            self.writer.save_best(self.step, self.model, lambda: self._emit(*event))

    @property
    def best_directory(self) -> Path:
        return self.writer.best_directory

    @property
    def tokens_seen(self) -> int:
        return self.step * self.tokens_per_step

    @property
    def learning_rate(self) -> float:
        return self.train_step.learning_rate

    @property
    def smoothed_loss(self) -> float | None:
        return self.rules.average.value if self.rules.average.weight else None

    def _position(self) -> Row:
        return {
            "step": self.step,
            "tokens_seen": self.tokens_seen,
            "epoch": round(self.epochs.after(self.step), 4),
        }

    def _note(self, message: str) -> None:
        self._emit("on_note", message)

    def _emit(self, event: str, *arguments: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(*arguments)
