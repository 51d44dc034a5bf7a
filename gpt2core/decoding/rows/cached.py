"""The rows being decoded, with their keys and values.

Shapes: B rows, K tokens appended at once, T tokens of the prompt, V vocab_size, C n_embd.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor

from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.packed.policy import fastest
from gpt2core.decoding.rows.kv_cache import KVCache
from gpt2core.errors import UserError
from gpt2core.model import GPT

PastBlockSize = Literal["refuse", "slide"]


class SearchRows(Protocol):
    """Rows that tokens are appended to and that can replace one another; the first append is the prompt."""

    length: int  # tokens appended so far
    hidden: Tensor | None  # (B, K, C) after ln_f, of the last append; None where the model gives none

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Append tokens (B, K) int64; returns logits (B, V) fp32 after the last. `mask` (B, K) is 0 at left padding."""

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (B',) int64 in that order; one may come more than once."""


class Rows(SearchRows, Protocol):
    """Rows that also give the logits after each of several tokens, and that can be cut."""

    @property
    def room(self) -> int:
        """Tokens that may be appended before the window slides."""

    def append_all(self, tokens: Tensor) -> Tensor:
        """Append tokens (B, K) int64; returns logits (B, K, V) fp32 after each."""

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens."""


def block_size_of(model: Callable[[Tensor], Tensor]) -> int | None:
    """The model's block_size; None for a callable without a config."""
    return getattr(getattr(model, "config", None), "block_size", None)


def check_finite(logits: Tensor) -> None:
    """Raises UserError for logits (B, V) that no softmax can take."""
    if not bool(logits.amax(-1).isfinite().all()):  # a NaN is the largest of its row
        raise UserError("the model's logits are not finite: its weights are damaged; train or fetch it again.")


class CachedRows:
    """Rows of a GPT: each append costs the new tokens only.

    With `past_block_size="slide"`, tokens that no longer fit make the window slide: the latest half of block_size is
    read again from position 0, so that the model sees between a half and the whole of block_size.

    `select` keeps a permutation instead of reordering the cache: moving keys and values would be most of a beam step.
    """

    def __init__(self, model: GPT | PackedGPT, max_length: int, past_block_size: PastBlockSize) -> None:
        self.model, self.max_length, self.past_block_size = model, max_length, past_block_size
        self.block_size = model.config.block_size
        self.length = 0
        self.hidden: Tensor | None = None
        self._order: Tensor | None = None  # (B,) the row in each storage slot; None for the identity
        # In storage order:
        self._cache: KVCache | None = None
        self._ids: Tensor | None = None  # (B, <= block_size) what the cache holds, kept where the window may slide
        self._mask: Tensor | None = None  # (B, room) bool, False at left padding

    @property
    def room(self) -> int:
        return self.block_size - (self._cache.length if self._cache is not None else 0)

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        first = self.length == 0
        logits = self.model.lm_head(self._read(tokens, mask)[:, -1]).float()
        if first:
            check_finite(logits)
        return logits

    def append_all(self, tokens: Tensor) -> Tensor:
        # A window that slides reads older tokens again.
        return self.model.lm_head(self._read(tokens)[:, -tokens.shape[1] :]).float()

    def _read(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Append tokens (B, K); the hidden states (B, K, C) of all that was read."""
        first = self.length == 0
        self.length += tokens.shape[1]
        tokens = self._to_storage_order(tokens)
        if first:
            self.model = fastest(self.model, self.max_length - self.length)
            if mask is not None and not bool(mask.all()):
                self._mask = mask.bool()
        if self.past_block_size == "slide":
            self._ids = tokens if self._ids is None else torch.cat([self._ids, tokens], dim=1)
        if tokens.shape[1] > self.room:
            tokens = self._slide(tokens.shape[1])
        if self._cache is None:
            self._cache = self._new_cache(tokens)
        mask = self._mask_of(self._cache.length + tokens.shape[1])
        self.hidden = self._to_row_order(self.model.hidden_states(tokens, mask, self._cache))
        return self.hidden

    def _to_storage_order(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) from the order of the last `select` to that of the cache."""
        return rows if self._order is None else rows[self._order]

    def _to_row_order(self, stored: Tensor) -> Tensor:
        """Rows (B, ...) from the order of the cache to that of the last `select`."""
        return stored if self._order is None else torch.empty_like(stored).index_copy_(0, self._order, stored)

    def _new_cache(self, tokens: Tensor) -> KVCache:
        dtype = torch.float32 if isinstance(self.model, PackedGPT) else self.model.wte.weight.dtype
        room = min(self.max_length, self.block_size)
        return KVCache(self.model.config, len(tokens), room, tokens.device, dtype)

    def _mask_of(self, length: int) -> Tensor | None:
        """The mask (B, length) of the tokens held; all after the prompt are text."""
        if self._mask is None:
            return None
        missing = length - self._mask.shape[1]
        if missing > 0:  # doubled, so that a token does not copy the whole mask
            ones = self._mask.new_ones(len(self._mask), max(missing, self._mask.shape[1]))
            self._mask = torch.cat([self._mask, ones], dim=1)
        return self._mask[:, :length]

    def _slide(self, new: int) -> Tensor:
        """Drop the older tokens and the cache; returns the tokens to read again (B, T)."""
        if self.past_block_size == "refuse":
            raise UserError(
                rule="{length} tokens do not fit into the model's block_size ({size})",
                remedy="generate fewer, or let the window slide ({past_block_size:slide})",
                length=self.length,
                size=self.block_size,
            )
        assert self._ids is not None
        # A long prompt keeps all that fits. Later the window shrinks to a half, so that it slides rarely.
        keep = self.block_size if new == self.length else max(self.block_size // 2, new)
        mask = self._mask_of(self._ids.shape[1])
        if mask is not None:
            self._mask = None if bool(mask[:, -keep:].all()) else mask[:, -keep:]
        self._ids = self._ids[:, -keep:]
        self._cache = None
        return self._ids

    def select(self, rows: Tensor) -> None:
        assert self._cache is not None
        self.hidden = None if self.hidden is None else self.hidden[rows]
        wanted = rows if self._order is None else self._order.argsort()[rows]
        order = storage_order(wanted.tolist())
        self._order = None if order == sorted(order) else torch.tensor(order, device=rows.device)
        kept = self._to_storage_order(wanted)
        self._ids = None if self._ids is None else self._ids[kept]
        self._mask = None if self._mask is None else self._mask[kept]
        self._cache.select(kept)

    @contextmanager
    def using(self, model: PackedGPT) -> Iterator[None]:
        """Append with another model of the same shape; what it appended is cropped at the end."""
        previous, length = self.model, self.length
        self.model = model
        try:
            yield
        finally:
            self.model = previous
            self.crop(length)

    def crop(self, length: int) -> None:
        assert self._cache is not None
        dropped = self.length - length
        if dropped:
            self._ids = None if self._ids is None else self._ids[:, :-dropped]
            self._cache.crop(self._cache.length - dropped)
            self.length = length


def storage_order(rows: list[int]) -> list[int]:
    """A storage order of the selected rows, as indices into `rows`, that leaves as many as possible in their slot."""
    order, moving = [-1] * len(rows), []
    for place, row in enumerate(rows):
        if row < len(rows) and order[row] < 0:
            order[row] = place
        else:
            moving.append(place)
    moved = iter(moving)
    return [place if place >= 0 else next(moved) for place in order]


class PlainRows:
    """Rows of any callable (B, T) -> logits (B, T, V): a whole pass each time, without a cache.

    Padding is moved to the right, where a causal model does not see it: a plain callable takes no mask.
    """

    hidden: Tensor | None = None
    room = sys.maxsize

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self.model = model
        self.length = 0
        self._ids: Tensor | None = None
        self._padding: Tensor | None = None  # (B,) left-padding tokens

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        first = self.length == 0
        self._take(tokens, mask)
        logits = self._last_logits(1)[:, 0]
        if first:
            check_finite(logits)
        return logits

    def append_all(self, tokens: Tensor) -> Tensor:
        self._take(tokens)
        return self._last_logits(tokens.shape[1])

    def _take(self, tokens: Tensor, mask: Tensor | None = None) -> None:
        self.length += tokens.shape[1]
        if self._ids is None:
            self._ids = tokens
            if mask is not None and not bool(mask.all()):
                self._padding = mask.shape[1] - mask.sum(-1)
        else:
            self._ids = torch.cat([self._ids, tokens], dim=1)

    def _last_logits(self, count: int) -> Tensor:
        """Logits (B, count, V) after each of the last tokens."""
        assert self._ids is not None
        if self._padding is None:
            return self.model(self._ids)[:, -count:].float()
        order = (torch.arange(self.length, device=self._ids.device) + self._padding[:, None]) % self.length
        logits = self.model(self._ids.gather(1, order))  # rows begin with their first prompt token
        last = torch.arange(self.length - count, self.length, device=self._ids.device) - self._padding[:, None]
        return logits[torch.arange(len(last), device=last.device)[:, None], last.clamp_min(0)].float()

    def select(self, rows: Tensor) -> None:
        assert self._ids is not None
        self._ids = self._ids[rows]
        self._padding = None if self._padding is None else self._padding[rows]

    def crop(self, length: int) -> None:
        assert self._ids is not None
        self._ids, self.length = self._ids[:, :length], length
