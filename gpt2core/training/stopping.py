"""When a run ends: target loss, patience, too many non-finite losses. The step limit is the schedule's length."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gpt2core.errors import UserError
from gpt2core.training.config import TrainerConfig
from gpt2core.training.events import Row

EMA_DECAY = 0.95
MAX_SKIPPED_IN_A_ROW = 10
# A full pass is expensive: one is made only when the evaluated part of train is this close to the target.
NEAR_TARGET = 1.05
STOP_SETTINGS = ("target_loss", "metric", "patience", "max_steps", "max_epochs")


@dataclass
class LossAverage:
    """Exponential moving average of batch losses with bias correction (Kingma and Ba 2014, section 3)."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, loss: float) -> float:
        self.total = EMA_DECAY * self.total + (1 - EMA_DECAY) * loss
        self.weight = EMA_DECAY * self.weight + (1 - EMA_DECAY)
        return self.value

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else math.inf

    @property
    def settled(self) -> bool:
        """Whether the first losses have so little weight that the average describes the current model."""
        return self.weight > 0.5


@dataclass
class StopState:
    """What the stop rules remember; saved in checkpoints."""

    best_train_loss: float | None = None  # lowest batch loss
    best_val_loss: float | None = None
    best_score: float | None = None  # of the weights in `best`
    best_step: int | None = None
    evaluations_without_best: int = 0
    skipped_in_a_row: int = 0
    batch_target_step: int | None = None  # first batch at or under the target
    batch_target_loss_full: float | None = None  # the full pass at that step


class StopRules:
    """Target loss and patience of a run, with the best losses so far.

    `full_pass` returns the mean loss over the train split; `note` receives messages.
    """

    def __init__(self, config: TrainerConfig, full_pass: Callable[[], float], note: Callable[[str], None]) -> None:
        self.config, self.state, self.average = config, StopState(), LossAverage()
        self._full_pass, self._note = full_pass, note

    @property
    def settings(self) -> dict[str, Any]:
        return {key: getattr(self.config, key) for key in STOP_SETTINGS}

    def add(self, train_loss: float) -> None:
        """Count a finite batch loss."""
        self.average.add(train_loss)
        if _is_lower(train_loss, self.state.best_train_loss):
            self.state.best_train_loss = train_loss

    def count_skipped(self, step: int, batch: int) -> None:
        """Count a step whose loss or gradient was not finite. Raises UserError after too many in a row."""
        self.state.skipped_in_a_row += 1
        if self.state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                rule=f"the loss or its gradient was not finite in {self.state.skipped_in_a_row} steps in a row (step "
                f"{step}, batch {batch})",
                remedy="lower {learning_rate}, or set {precision} to fp32",
            )

    def after_batch(self, step: int, train_loss: float) -> str | None:
        """Compare the batch loss and the moving average with the target; returns why to stop, or None."""
        target, state = self.config.target_loss, self.state
        if target is None:
            return None
        if train_loss <= target and state.batch_target_step is None:
            state.batch_target_step = step
            state.batch_target_loss_full = self._full_pass()
            self._note(
                f"step {step}: batch loss {train_loss:.5f} is at or under the target {target:g}; "
                f"a full pass over train gives {state.batch_target_loss_full:.5f}"
            )
        if self.config.metric == "train_batch" and train_loss <= target:
            return "target_loss"
        if self.config.metric == "train_ema" and self.average.settled and self.average.value <= target:
            return "target_loss"
        return None

    def new_best(self, step: int, row: Row) -> float | None:
        """The score of an evaluation if it is the best so far, else None; counts the evaluations for `patience`."""
        state, val_loss = self.state, row.get("val_loss")
        if val_loss is not None and _is_lower(val_loss, state.best_val_loss):
            state.best_val_loss = val_loss
        score = val_loss if self.config.best_by == "val_loss" and val_loss is not None else row.get("train_eval_loss")
        if score is None or not math.isfinite(score) or not _is_lower(score, state.best_score):
            state.evaluations_without_best += 1
            return None
        state.best_score, state.best_step, state.evaluations_without_best = score, step, 0
        return score

    def after_evaluation(self, row: Row) -> str | None:
        """Compare val loss or full pass with the target and apply `patience`; returns why to stop, or None."""
        target, patience = self.config.target_loss, self.config.patience
        val_loss, train_eval_loss = row.get("val_loss"), row.get("train_eval_loss")
        if target is not None and self.config.metric == "val" and val_loss is not None and val_loss <= target:
            return "target_loss"
        near = target is not None and train_eval_loss is not None and train_eval_loss <= NEAR_TARGET * target
        if target is not None and self.config.metric == "train_full" and near and self._full_pass() <= target:
            return "target_loss"
        if patience is not None and self.state.evaluations_without_best >= patience:
            return "patience"
        return None

    def full_loss_at_target(self, reason: str) -> float | None:
        """The loss of a full pass over train where the target ended the run, else None."""
        if reason != "target_loss":
            return None
        loss = self._full_pass()
        self._note(f"full pass over train: {loss:.5f}, target {self.config.target_loss:g} on {self.config.metric}")
        return loss

    def results(self) -> dict[str, Any]:
        """The fields of `TrainResult` that come from `state`."""
        keys = ("best_train_loss", "batch_target_step", "batch_target_loss_full", "best_val_loss", "best_step")
        return {key: getattr(self.state, key) for key in keys}

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"stop": asdict(self.state), "average": asdict(self.average), "stop_settings": self.settings}

    def load(self, saved: dict[str, Any], best_exists: bool) -> None:
        """Restore from a checkpoint; if the best weights were removed, the next evaluation is the best."""
        self.state, self.average = StopState(**saved["stop"]), LossAverage(**saved["average"])
        if not best_exists:
            self.state.best_score = self.state.best_step = None

    def limit_reason(self, total_steps: int) -> str:
        """Which limit ends a run after `total_steps`."""
        by_epochs = self.config.max_steps is None or total_steps < self.config.max_steps
        return "max_epochs" if by_epochs else "max_steps"


def total_steps(config: TrainerConfig, batches_per_epoch: float) -> int:
    """The length of the schedule: the smaller of max_steps and whole max_epochs."""
    limits = []
    if config.max_steps is not None:
        limits.append(config.max_steps)
    if config.max_epochs is not None:
        limits.append(max(1, math.ceil(round(config.max_epochs * batches_per_epoch, 6))))
    return min(limits)


def _is_lower(value: float, best: float | None) -> bool:
    return best is None or value < best
