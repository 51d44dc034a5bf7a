"""Current training speed and the time left."""

import time
from collections import deque
from statistics import median

RECENT_STEPS = 50


class Pace:
    """Call `tick` after every step. Speed is the median of recent steps, so evaluations between them do not count."""

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
        """Time for `steps` more at the average so far, with evaluations and checkpoints; None before the first step."""
        done = self._last_step - self._first_step
        return steps * (self._last_at - self._started_at) / done if done > 0 else None
