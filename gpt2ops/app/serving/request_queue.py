"""A first-in, first-out queue with limits on running and waiting requests."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from gpt2core.errors import UserError


class RequestQueue:
    """Each request can see its position. Not thread-safe: all calls come from one event loop."""

    def __init__(self, running: int, waiting: int) -> None:
        self.most_running, self._most_waiting = running, waiting
        self.running = 0
        self.waiting: deque[QueuedRequest] = deque()

    @contextmanager
    def join(self) -> Iterator["QueuedRequest"]:
        """Append a request; the end of the block removes it, waiting or running.

        Raises UserError if the queue is full.
        """
        if len(self.waiting) >= self._most_waiting:
            raise UserError(
                f"The page is busy: {len(self.waiting)} prompts are waiting, and no more may. Try again in a minute."
            )
        queued = QueuedRequest(self)
        self.waiting.append(queued)
        try:
            yield queued
        finally:
            if queued in self.waiting:
                self.waiting.remove(queued)
            else:
                self.running -= 1


class QueuedRequest:
    def __init__(self, queue: RequestQueue) -> None:
        self._queue = queue

    @property
    def ahead(self) -> int:
        """How many requests run or wait before this one."""
        return self._queue.waiting.index(self) + self._queue.running

    def try_start(self) -> bool:
        """Start running if this request is the first and there is room; returns whether it did."""
        if self._queue.waiting[0] is not self or self._queue.running >= self._queue.most_running:
            return False
        self._queue.waiting.popleft()
        self._queue.running += 1
        return True
