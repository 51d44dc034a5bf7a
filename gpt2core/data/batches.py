"""Training batches from a split. A batch is a pure function of its number, so any batch costs the same.

Shapes: B batch_size, T sequence_length.
"""

import numpy as np

from gpt2core.data.tokens import TokenSplit
from gpt2core.errors import UserError

SAMPLERS = ("sequential", "shuffled", "sliding")


class Batches:
    """Batches of a split, numbered across epochs: epoch = index // batches_per_epoch.

    - sequential: consecutive windows of T tokens, the same in every epoch;
    - shuffled: the same windows in a new order every epoch, a function of `seed` and epoch;
    - sliding: windows that start `stride` tokens apart (None: half a window), shuffled likewise.

    Windows that do not fill a batch are skipped in that epoch. Raises UserError for a split too short for one batch.
    """

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
            raise UserError(
                key="sampler", value=sampler, rule="must be one of {samplers}", samplers=", ".join(SAMPLERS)
            )
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.split = split
        self._seed = seed
        self._shuffled = sampler != "sequential"
        self._stride = (stride or max(1, sequence_length // 2)) if sampler == "sliding" else sequence_length
        # A window is T inputs and the one token after them.
        num_windows = max(0, (len(split) - 1 - sequence_length) // self._stride + 1)
        self._num_windows = num_windows
        self.batches_per_epoch = num_windows // batch_size
        self._order: tuple[int, np.ndarray] | None = None
        if not self.batches_per_epoch:
            needed = (batch_size - 1) * self._stride + sequence_length + 1
            raise UserError(
                rule="the {split} split has {tokens} tokens and one batch needs {needed} "
                "({batch_size} {rows}, {sequence_length} {columns})",
                remedy="lower one of them or use a longer text",
                split=split.name,
                tokens=len(split),
                needed=needed,
                rows=batch_size,
                columns=sequence_length,
            )

    def batch(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index` >= 0: token_ids and targets, the same shifted by one token; each int64 (B, T)."""
        epoch, position = divmod(index, self.batches_per_epoch)
        rows = np.arange(position * self.batch_size, (position + 1) * self.batch_size)
        windows = self._epoch_order(epoch)[rows] if self._shuffled else rows
        starts = (windows.astype(np.int64) * self._stride).tolist()
        tokens = np.stack([self.split.read(start, start + self.sequence_length + 1) for start in starts])
        tokens = tokens.astype(np.int64)  # (B, T + 1)
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._order = (epoch, generator.permutation(np.arange(self._num_windows, dtype=np.uint32)))
        return self._order[1]
