"""Batches that would harm a model: a loss that is no number, a loss far above those before it.

Which updates are left out is a function of the losses alone and travels in checkpoints, so a resumed run leaves out
the same.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

# A spike is held against the last losses by median and median absolute deviation (Rousseeuw and Croux 1993), which it
# does not move itself.
WINDOW, LEAST_LOSSES = 50, 20
SPIKE_Z = 6.0
LEAST_SPREAD = 0.01  # of the loss: large batches differ by less, and then every wobble would be a spike
SPIKES_IN_A_ROW = 3
MAX_ROLLBACKS = 5
# Its square is still a number in fp32, and so are an optimizer's moments.
GRADIENT_LIMIT = 1e18


@dataclass
class HealthState:
    """What is remembered of a run's losses; it travels in checkpoints."""

    recent: list[float] = field(default_factory=list)
    spikes_in_a_row: int = 0
    left_out: list[int] = field(default_factory=list)  # numbers of the batches that a run which went back passes by
    rollbacks: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """Whether to take a batch's update; `go_back` names the batches that made it necessary to go back."""

    take: bool
    note: str | None = None
    finite: bool = True
    go_back: tuple[int, ...] = ()


class Health:
    """Judges each batch before its update. `spike_rollback` is a z-score, None where spikes are only reported."""

    def __init__(self, spike_rollback: float | None) -> None:
        self.state = HealthState()
        self.spike_rollback = spike_rollback

    def judge(self, batch: int, train_loss: float, grad_norm: float) -> Verdict:
        """Tens of microseconds. `batch` is the number of completed steps."""
        state, step = self.state, batch + 1
        if not (math.isfinite(train_loss) and grad_norm < GRADIENT_LIMIT):
            note = f"step {step}: the loss or its gradient is not finite; batch {batch} is skipped, the weights stay"
            return Verdict(take=False, note=note, finite=False)
        if self.passes_by(batch):
            return Verdict(take=False, note=f"step {step}: batch {batch} is passed by")
        middle, z = self._distance(train_loss)
        back = self.spike_rollback is not None and self.may_go_back
        if z < (self.spike_rollback if self.spike_rollback is not None and back else SPIKE_Z):
            state.spikes_in_a_row = 0
            self._remember(train_loss)
            return Verdict(take=True)
        state.spikes_in_a_row += 1
        text = (
            f"step {step}: the loss of batch {batch} is a spike: {train_loss:.3f}, "
            f"{z:.1f} standard deviations above the {middle:.3f} of those before it"
        )
        if not back:
            self._remember(train_loss)
            return Verdict(take=True, note=text if state.spikes_in_a_row == 1 else None)
        if state.spikes_in_a_row < SPIKES_IN_A_ROW:
            return Verdict(take=False, note=f"{text}; its update is left out")
        # One batch is odd, several in a row are a sign that the weights are: by the update before the first of them.
        return Verdict(take=False, note=text, go_back=tuple(range(max(0, step - SPIKES_IN_A_ROW - 1), step)))

    def passes_by(self, batch: int) -> bool:
        """Whether `batch` never updates the weights."""
        return batch in self.state.left_out

    @property
    def may_go_back(self) -> bool:
        return self.state.rollbacks < MAX_ROLLBACKS

    def pass_by(self, batches: Iterable[int], rollbacks: int) -> None:
        """After going back: `batches` never update the weights again."""
        self.state.left_out = sorted({*self.state.left_out, *batches})
        self.state.rollbacks = rollbacks

    def _distance(self, loss: float) -> tuple[float, float]:
        """Median of the last losses, and how many standard deviations `loss` is above it.

        The spread is that around the line on which they fall: early in a run the fall itself is the greater part.
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
