"""Who writes next: first come, first served, so many at once, and no more waiting than is fair to let wait."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from gpt2core.errors import UserError


class Turns:
    """A queue in which each sees its place. All its calls belong to one thread."""

    def __init__(self, running: int, waiting: int) -> None:
        self.most_running, self._most_waiting = running, waiting
        self.running = 0
        self.line: deque[Turn] = deque()

    @contextmanager
    def join(self) -> Iterator["Turn"]:
        """Stand at the end of the queue, and leave it, or the place of those who write, at the end of the block.

        Raises UserError where the queue is full.
        """
        if len(self.line) >= self._most_waiting:
            raise UserError(
                f"The page is busy: {len(self.line)} prompts are waiting, and no more may. Try again in a minute."
            )
        turn = Turn(self)
        self.line.append(turn)
        try:
            yield turn
        finally:
            if turn in self.line:
                self.line.remove(turn)
            else:
                self.running -= 1


class Turn:
    """A place in the queue."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    @property
    def before(self) -> int:
        """How many write or wait before us."""
        return self._turns.line.index(self) + self._turns.running

    def begin(self) -> bool:
        """Leave the queue to write, where it is our turn."""
        if self._turns.line[0] is not self or self._turns.running >= self._turns.most_running:
            return False
        self._turns.line.popleft()
        self._turns.running += 1
        return True
