"""Batches that would harm a model: a loss that is not finite, or one far above the losses before it.

Which updates are skipped is a function of the losses alone and is saved in checkpoints, so a resumed run skips the
same ones.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

# A spike is measured by median and median absolute deviation (Rousseeuw and Croux 1993), which it does not move itself.
WINDOW, LEAST_LOSSES = 50, 20
SPIKE_Z = 6.0
LEAST_SPREAD = 0.01  # of the loss: with large batches the noise is smaller, and every small change would be a spike
SPIKES_IN_A_ROW = 3
MAX_ROLLBACKS = 5
# Its square is finite in fp32, and so are an optimizer's moments.
GRADIENT_LIMIT = 1e18


@dataclass
class MonitorState:
    """What is remembered of a run's losses; saved in checkpoints under these names."""

    recent: list[float] = field(default_factory=list)
    spikes_in_a_row: int = 0
    left_out: list[int] = field(default_factory=list)  # batches that a rollback has excluded
    rollbacks: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class UpdateDecision:
    """Whether to apply a batch's update; `rollback` names the batches that make a rollback necessary."""

    apply_update: bool
    note: str | None = None
    finite: bool = True
    rollback: tuple[int, ...] = ()


class LossMonitor:
    """Decides on each batch before its update. `spike_rollback` is a z-score; None: spikes are only reported."""

    def __init__(self, spike_rollback: float | None) -> None:
        self.state = MonitorState()
        self.spike_rollback = spike_rollback

    def decide(self, batch: int, train_loss: float, grad_norm: float) -> UpdateDecision:
        """For batch `batch`, which is the number of completed steps. Takes tens of microseconds."""
        state, step = self.state, batch + 1
        if not (math.isfinite(train_loss) and grad_norm < GRADIENT_LIMIT):
            note = f"step {step}: the loss or its gradient is not finite; batch {batch} is skipped, weights unchanged"
            return UpdateDecision(apply_update=False, note=note, finite=False)
        if self.is_excluded(batch):
            return UpdateDecision(apply_update=False, note=f"step {step}: batch {batch} is skipped after the rollback")
        middle, z = self._distance(train_loss)
        may_skip = self.spike_rollback is not None and self.can_roll_back
        if z < (self.spike_rollback if self.spike_rollback is not None and may_skip else SPIKE_Z):
            state.spikes_in_a_row = 0
            self._remember(train_loss)
            return UpdateDecision(apply_update=True)
        state.spikes_in_a_row += 1
        text = (
            f"step {step}: the loss of batch {batch} is a spike: {train_loss:.3f}, "
            f"{z:.1f} standard deviations above the recent median {middle:.3f}"
        )
        if not may_skip:
            self._remember(train_loss)
            return UpdateDecision(apply_update=True, note=text if state.spikes_in_a_row == 1 else None)
        if state.spikes_in_a_row < SPIKES_IN_A_ROW:
            return UpdateDecision(apply_update=False, note=f"{text}; its update is skipped")
        # One spike is the batch's fault; several in a row are the weights', changed by the update before the first.
        return UpdateDecision(
            apply_update=False, note=text, rollback=tuple(range(max(0, step - SPIKES_IN_A_ROW - 1), step))
        )

    def is_excluded(self, batch: int) -> bool:
        """Whether a rollback has excluded `batch` from updating the weights."""
        return batch in self.state.left_out

    @property
    def can_roll_back(self) -> bool:
        return self.state.rollbacks < MAX_ROLLBACKS

    def exclude(self, batches: Iterable[int], before: MonitorState) -> None:
        """After a rollback: `batches`, and those excluded in the state `before` it, never update the weights again."""
        self.state.left_out = sorted({*before.left_out, *batches})
        self.state.rollbacks = before.rollbacks + 1

    def _distance(self, loss: float) -> tuple[float, float]:
        """Median of the recent losses, and how many standard deviations `loss` is above it.

        The spread is taken around the line on which they fall: early in a run the trend is larger than the noise.
        """
        recent, half = self.state.recent, len(self.state.recent) // 2
        if len(recent) < LEAST_LOSSES:
            return math.nan, -math.inf
        middle = median(recent[half:])
        slope = (middle - median(recent[:half])) / half
        level = [value - slope * place for place, value in enumerate(recent)]
        centre = median(level)
        spread = 1.4826 * median(abs(value - centre) for value in level)
        return middle, (loss - middle) / max(spread, LEAST_SPREAD * middle)

    def _remember(self, loss: float) -> None:
        self.state.recent = [*self.state.recent[1 - WINDOW :], loss]
