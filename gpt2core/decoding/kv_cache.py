"""Keys and values of the tokens already seen, in tensors allocated once.

Shapes: B batch, H n_head, T new tokens, S tokens so far, D head_dim.
"""

import torch
from torch import Tensor

from gpt2core.config import GPTConfig


class KVCache:
    def __init__(
        self, config: GPTConfig, batch_size: int, max_length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        shape = (config.n_layer, 2, batch_size, config.n_head, max_length, config.head_dim)
        self._store = torch.empty(shape, device=device, dtype=dtype)
        self._lengths = [0] * config.n_layer

    @property
    def length(self) -> int:
        """Tokens that every layer holds."""
        return self._lengths[-1]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v (B, H, T, D) to a layer; returns all its keys and values, (B, H, S, D)."""
        start = self._lengths[layer]
        stop = start + k.shape[2]
        self._store[layer, 0, :, :, start:stop] = k
        self._store[layer, 1, :, :, start:stop] = v
        self._lengths[layer] = stop
        return self._store[layer, 0, :, :, :stop], self._store[layer, 1, :, :, :stop]

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (B',) int64 in that order."""
        self._store = self._store.index_select(2, rows)

    def crop(self, length: int) -> None:
        """Forget what follows the first `length` tokens."""
        self._lengths = [length] * len(self._lengths)
