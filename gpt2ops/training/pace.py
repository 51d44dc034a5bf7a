"""How fast a training is now, and so when it ends."""

import time
from collections import deque
from statistics import median

RECENT_STEPS = 50


class Pace:
    """Told of every step. Speed is the median of the last steps: an evaluation between two of them does not count."""

    def __init__(self) -> None:
        self._durations: deque[float] = deque(maxlen=RECENT_STEPS)
        self._started_at = self._last_at = time.monotonic()
        self._first_step = self._last_step = 0

    def start(self, step: int) -> None:
        self._started_at = self._last_at = time.monotonic()
        self._first_step = self._last_step = step

    def tick(self, step: int) -> None:
        now = time.monotonic()
        self._durations.append(now - self._last_at)
        self._last_at, self._last_step = now, step

    @property
    def steps_per_second(self) -> float:
        """0 before the first step."""
        return 1 / max(1e-9, median(self._durations)) if self._durations else 0.0

    def seconds_for(self, steps: int) -> float | None:
        """What `steps` more take at the average so far, evaluations and checkpoints included; None before the first."""
        done = self._last_step - self._first_step
        return steps * (self._last_at - self._started_at) / done if done > 0 else None
