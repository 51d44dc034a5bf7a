"""Keys and values of earlier tokens, written in place.

Shapes: B batch, H n_head, T new tokens, S tokens so far, D head_dim.
"""

import numpy as np
import torch
from torch import Tensor

from gpt2core.config import GPTConfig

# Upper limit of the initial capacity in tokens; a longer row doubles its capacity.
FIRST_CAPACITY = 1024


class KVCache:
    """Keys and values of every layer for B rows of at most `max_length` tokens; `likely_length` sizes the first buffer.

    `select` copies only what differs: each stored token has a number, and a row that replaces another copies from the
    first token at which their numbers differ. Beams share nearly all earlier tokens, so this is a few tokens.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        max_length: int,
        device: torch.device,
        dtype: torch.dtype,
        likely_length: int | None = None,
    ) -> None:
        self._layers, self._heads, self._width = config.n_layer, config.n_head, config.head_dim
        self._device, self._dtype = device, dtype
        self._batch_size, self._max_length = batch_size, max_length
        # A layer's rows are contiguous, so that attention over all its heads needs no copy.
        self._store = self._allocate(batch_size, min(max_length, likely_length or max_length, FIRST_CAPACITY))
        self._token_numbers = np.full((batch_size, self._store.shape[4]), -1, dtype=np.int64)
        self._next_number = 0
        self._lengths = [0] * config.n_layer

    @property
    def length(self) -> int:
        """Tokens that every layer holds."""
        return self._lengths[-1]

    @property
    def batch_size(self) -> int:
        return self._batch_size

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v (B, H, T, D) to a layer; returns all its keys and values, (B, H, S, D)."""
        start = self._lengths[layer]
        stop = start + k.shape[2]
        if layer == 0:
            self._open(start, stop)
        keys, values = self._store[layer, :, : self._batch_size].unbind(0)
        keys[:, :, start:stop] = k
        values[:, :, start:stop] = v
        self._lengths[layer] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def extend_all(self, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Room for `count` tokens in all layers at once, in few calls.

        A layer: where its new keys and values go (2, B, H, T, D), and all its keys and its values, each (B, H, S, D).
        """
        start = self.length
        stop = start + count
        used = self.reserve(count)[:, :, :, :, :stop]  # (L, 2, B, H, S, D)
        new = used[:, :, :, :, start:].unbind(0)
        seen = used.flatten(0, 1).unbind(0)
        return list(zip(new, seen[0::2], seen[1::2], strict=True))

    def reserve(self, count: int) -> Tensor:
        """Count `count` more tokens as held; the caller writes them. All that is stored, (L, 2, B, H, room, D).

        The buffer keeps its address unless it had to grow; unwritten entries are 0.
        """
        stop = self.length + count
        self._open(self.length, stop)
        self._lengths = [stop] * self._layers
        return self._store[:, :, : self._batch_size]

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (B',) int64 in that order; one may come more than once."""
        wanted = np.asarray(rows.tolist(), dtype=np.int64)
        if len(wanted) > self._store.shape[2]:
            self._reallocate(len(wanted), self._store.shape[4])
        length = self.length
        numbers = self._token_numbers[wanted, :length]  # what each row shall hold
        differs = numbers != self._token_numbers[: len(wanted), :length]
        moves = []
        moved = np.flatnonzero(differs.any(axis=1)).tolist()
        for row in moved:
            start, source = int(differs[row].argmax()), int(wanted[row])
            tail = self._store[:, :, source, :, start:length]
            moves.append((row, start, tail.clone() if source in moved else tail))
        for row, start, tail in moves:  # after all reads: rows may swap
            self._store[:, :, row, :, start:length] = tail
        self._token_numbers[: len(wanted), :length] = numbers
        self._batch_size = len(wanted)

    def keep(self, places: Tensor) -> None:
        """Keep each row's tokens at `places` (B, S') int64, in that order; tokens that stay in place are not moved."""
        wanted = np.asarray(places.tolist(), dtype=np.int64)
        stop = wanted.shape[1]
        moving = (wanted != np.arange(stop)).any(axis=0)
        if moving.any():
            first = int(moving.argmax())
            for row in range(len(wanted)):
                held = self._store[:, :, row]  # (L, 2, H, room, D)
                held[:, :, :, first:stop] = held[:, :, :, places[row, first:]]
                self._token_numbers[row, first:stop] = self._token_numbers[row, wanted[row, first:]]
        self._lengths = [stop] * self._layers

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self._lengths = [min(length, held) for held in self._lengths]

    def _open(self, start: int, stop: int) -> None:
        """Allocate tokens start..stop of every row and number them."""
        if stop > self._store.shape[4]:
            grown = max(stop, min(2 * self._store.shape[4], self._max_length))
            self._reallocate(self._store.shape[2], grown)
        count = self._batch_size * (stop - start)
        first = self._next_number
        numbers = np.arange(first, first + count).reshape(self._batch_size, -1)
        self._token_numbers[: self._batch_size, start:stop] = numbers
        self._next_number += count

    def _reallocate(self, batch_size: int, capacity: int) -> None:
        old, old_numbers = self._store, self._token_numbers
        self._store = self._allocate(batch_size, capacity)
        self._store[:, :, : old.shape[2], :, : self.length] = old[:, :, :, :, : self.length]
        self._token_numbers = np.full((batch_size, capacity), -1, dtype=np.int64)
        self._token_numbers[: len(old_numbers), : old.shape[4]] = old_numbers

    def _allocate(self, batch_size: int, capacity: int) -> Tensor:
        shape = (self._layers, 2, batch_size, self._heads, capacity, self._width)
        return torch.zeros(shape, device=self._device, dtype=self._dtype)
