"""Training batches from a split. A batch is a pure function of its number, so any batch costs the same.

Shapes: B batch_size, T sequence_length.
"""

from dataclasses import dataclass

import numpy as np

from gpt2core.data.tokens import TokenSplit
from gpt2core.errors import UserError

SAMPLERS = ("sequential", "shuffled", "sliding")


@dataclass(frozen=True)
class Epochs:
    """Epochs of `windows` windows in steps of `batch_size`: one may end within a batch."""

    windows: int
    batch_size: int

    @property
    def batches(self) -> float:
        """Of one epoch."""
        return self.windows / self.batch_size

    def after(self, steps: int) -> float:
        """Passes over the split."""
        return steps * self.batch_size / self.windows

    def end_at(self, step: int) -> bool:
        """Whether the batch of `step` (from 1) has the last window of an epoch."""
        return (step * self.batch_size) // self.windows > ((step - 1) * self.batch_size) // self.windows


class Batches:
    """Batches of a split, numbered across epochs. An epoch is `windows_per_epoch` windows of T tokens: all tokens.

    - sequential: consecutive windows, the same in every epoch;
    - shuffled: consecutive windows in a new order every epoch, a function of `seed` and epoch;
    - sliding: windows that start `stride` tokens apart (None: half a window), shuffled likewise.

    Batches are always full: the last one of an epoch goes on with the next epoch's first windows. Where the text is no
    whole number of windows, two of them overlap: the last two for `sequential`, in each epoch others for the rest.
    Raises UserError for a split with fewer windows than one batch has.
    """

    masked = False  # every target is trained

    def __init__(
        self,
        split: TokenSplit,
        *,
        batch_size: int,
        sequence_length: int,
        sampler: str,
        stride: int | None = None,
        seed: int = 0,
    ) -> None:
        if sampler not in SAMPLERS:
            raise UserError(key="sampler", value=sampler, rule=f"must be one of {', '.join(SAMPLERS)}")
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.tokens_per_step = batch_size * sequence_length
        self.split = split
        self._seed = seed
        self._shuffled = sampler != "sequential"
        self._stride = (stride or max(1, sequence_length // 2)) if sampler == "sliding" else sequence_length
        if self._stride > sequence_length:
            raise UserError(
                key="stride",
                value=stride,
                rule="must not exceed {sequence_length} ({length}), or tokens between two windows are never trained",
                length=sequence_length,
            )
        # A window is T inputs and the one token after them.
        self._last_start = len(split) - 1 - sequence_length
        self.windows_per_epoch = -(-self._last_start // self._stride) + 1 if self._last_start >= 0 else 0
        self._epochs: dict[int, tuple[np.ndarray, int]] = {}  # of the last two used: a batch may have windows of both
        if self.windows_per_epoch < batch_size:
            needed = sequence_length + 1 + (max(0, batch_size - 2) * self._stride + 1 if batch_size > 1 else 0)
            raise UserError(
                key="batch_size",
                value=batch_size,
                rule="is too large: the {split} split has {tokens} tokens, and one batch needs {needed} with "
                "{sequence_length} ({length})",
                remedy="lower one of them or use a longer text",
                split=split.name,
                tokens=len(split),
                needed=needed,
                length=sequence_length,
            )

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index` >= 0: token_ids and targets, the same shifted by one token; each int64 (B, T)."""
        windows = range(index * self.batch_size, (index + 1) * self.batch_size)
        starts = [self._start(*divmod(window, self.windows_per_epoch)) for window in windows]
        tokens = np.stack([self.split.read(start, start + self.sequence_length + 1) for start in starts])
        tokens = tokens.astype(np.int64)  # (B, T + 1)
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()

    def _start(self, epoch: int, position: int) -> int:
        """First token of the window at `position` of an epoch."""
        last = self.windows_per_epoch - 1
        window, joint = position, last
        if self._shuffled:
            order, joint = self._epoch(epoch)
            window = int(order[position])
        # Windows from the joint on lie against the end of the text: they overlap with the one before it.
        return window * self._stride - (last * self._stride - self._last_start if window >= joint else 0)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, int]:
        """Order of the windows, and the first that is moved."""
        if epoch not in self._epochs:
            generator, count = np.random.default_rng([self._seed, epoch]), self.windows_per_epoch
            order = generator.permutation(np.arange(count, dtype=np.uint32))
            self._epochs = {number: kept for number, kept in self._epochs.items() if number == epoch - 1}
            self._epochs[epoch] = (order, int(generator.integers(1, count)) if count > 1 else 0)
        return self._epochs[epoch]
