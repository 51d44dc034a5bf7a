"""When to stop: target loss, patience, non-finite losses. Limits of steps and epochs are the schedule's length."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from gpt2core.errors import UserError

EMA_DECAY = 0.95
MAX_SKIPPED_IN_A_ROW = 10


@dataclass
class LossAverage:
    """Exponential moving average of batch losses, without the bias of its start (Kingma and Ba 2014, section 3)."""

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
        """Whether the first steps have faded enough for the average to stand for the model."""
        return self.weight > 0.5


@dataclass
class StopState:
    """What the stop rules remember; it travels in checkpoints."""

    best_train_loss: float | None = None  # lowest batch
    best_val_loss: float | None = None
    best_score: float | None = None  # what `models/best` was chosen by
    best_step: int | None = None
    evaluations_without_best: int = 0
    skipped_in_a_row: int = 0
    batch_target_step: int | None = None  # first batch at or under the target
    batch_target_loss_full: float | None = None  # what a full pass gave then

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def lower(value: float, best: float | None) -> bool:
    return best is None or value < best


def note_skipped_step(state: StopState, step: int, batch_index: int) -> None:
    """Count a step whose loss or gradient was not finite. Raises UserError after too many in a row."""
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise UserError(
            f"the loss or its gradient was not finite in {state.skipped_in_a_row} steps in a row (step {step}, "
            f"batch {batch_index}); lower train.learning_rate, or set run.precision to fp32."
        )
