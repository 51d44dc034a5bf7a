"""What makes tokens less or more likely for what was said before, or forbids them; bit-equal to `transformers` 5.23.

Shapes: B rows, T tokens so far, V vocab_size, N biased sequences. `padding` (P,) int64 is the number of left-padding
tokens of each row that a processor leaves out of account; where P and B differ, a prompt's rows are consecutive.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gpt2core.errors import UserError


def spread_padding(padding: Tensor, rows: int) -> Tensor:
    """`padding` (P,) for `rows` rows: more of them in a beam search, fewer in one group of it."""
    if rows == len(padding):
        return padding
    if rows > len(padding):
        return padding.repeat_interleave(rows // len(padding))
    return padding[:: len(padding) // rows]


class RepetitionPenalty:
    """Logits of tokens seen are divided, negative ones multiplied, by `penalty` (CTRL, Keskar et al. 2019)."""

    def __init__(self, penalty: float, padding: Tensor | None = None) -> None:
        self.penalty, self.padding = penalty, padding

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if self.padding is not None:
            positions = torch.arange(ids.shape[1], device=ids.device)
            first = spread_padding(self.padding, len(ids))[:, None]
            # Seen once or twice is the same, so the last token can stand where the padding is.
            ids = torch.where(positions < first, ids[:, -1:], ids)
        seen = logits.gather(1, ids)  # (B, T)
        return logits.scatter(1, ids, torch.where(seen < 0, seen * self.penalty, seen / self.penalty))


class NoRepeatNgram:
    """No n-gram of `size` tokens comes twice in a row (Paulus et al. 2017)."""

    def __init__(self, size: int, padding: Tensor | None = None) -> None:
        self.size, self.padding = size, padding

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        starts = ids.shape[1] - self.size + 1  # n-grams so far
        if starts < 1:
            return logits
        # From the rows themselves each step: beams change places, and a comparison of T numbers costs microseconds.
        same = torch.ones(len(ids), starts, dtype=torch.bool, device=ids.device)
        for offset in range(self.size - 1):
            same &= ids[:, offset : offset + starts] == ids[:, starts + offset, None]
        if self.padding is not None:
            same &= torch.arange(starts, device=ids.device) >= spread_padding(self.padding, len(ids))[:, None]
        vocab_size = logits.shape[-1]
        banned = torch.zeros(len(ids), vocab_size + 1, dtype=torch.bool, device=ids.device)
        banned.scatter_(1, torch.where(same, ids[:, self.size - 1 :], vocab_size), True)
        return logits.masked_fill(banned[:, :vocab_size], -torch.inf)


class SequenceBias:
    """Adds a bias to the last token of each sequence whose other tokens were just said. Ids outside V: UserError."""

    def __init__(self, biases: Mapping[tuple[int, ...], float], padding: Tensor | None = None) -> None:
        self.biases, self.padding = biases, padding
        self._single: Tensor | None = None  # (V,)
        self._longer: list[tuple[Tensor, Tensor, Tensor]] = []  # prefixes (N, length), last tokens (N,), biases (N,)

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if self._single is None:
            self._single = self._prepare(logits.shape[-1], logits.device)
        if not self._longer:
            return logits + self._single
        bias = self._single.expand_as(logits).clone()
        for prefixes, last_tokens, biases in self._longer:
            length = prefixes.shape[1]
            if length > ids.shape[1]:
                continue
            said = (ids[:, None, -length:] == prefixes).all(-1)  # (B, N)
            if self.padding is not None:
                said &= ids.shape[1] - spread_padding(self.padding, len(ids))[:, None] >= length
            bias.index_add_(1, last_tokens, torch.where(said, biases, 0.0))
        return logits + bias

    def _prepare(self, vocab_size: int, device: torch.device) -> Tensor:
        by_length: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for sequence, bias in self.biases.items():
            if max(sequence) >= vocab_size:
                raise UserError(f"token id {max(sequence)} of a biased or bad word is outside the {vocab_size} known.")
            by_length.setdefault(len(sequence), []).append((sequence, bias))
        single = torch.zeros(vocab_size, device=device)
        for sequence, bias in by_length.pop(1, []):
            single[sequence[0]] = bias
        for group in by_length.values():
            sequences = torch.tensor([sequence for sequence, _ in group], device=device)
            biases = torch.tensor([bias for _, bias in group], dtype=torch.float32, device=device)
            self._longer.append((sequences[:, :-1], sequences[:, -1], biases))
        return single


def ban_words(
    bad_words: Sequence[Sequence[int]], eos_ids: Sequence[int], padding: Tensor | None = None
) -> SequenceBias:
    """No row says a bad word; an end of text alone is none."""
    ends = {(eos_id,) for eos_id in eos_ids}
    words = [tuple(word) for word in bad_words]
    return SequenceBias({word: -torch.inf for word in words if word not in ends}, padding)


class SuppressTokens:
    """Tokens that never come; ids outside V are let pass."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = token_ids
        self._index: Tensor | None = None

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if self._index is None:
            known = [token_id for token_id in self.token_ids if token_id < logits.shape[-1]]
            self._index = torch.tensor(known, dtype=torch.int64, device=logits.device)
        return logits.index_fill(1, self._index, -torch.inf)


class MinLength:
    """No end of text before a row has `min_length` tokens, its prompt included."""

    def __init__(self, min_length: int, eos_ids: Sequence[int], padding: Tensor | None = None) -> None:
        self.min_length, self.padding = min_length, padding
        self._no_end = SuppressTokens(eos_ids)
        self._longest_padding = 0 if padding is None else int(padding.max())

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        length = ids.shape[1]
        if length - self._longest_padding >= self.min_length:
            return logits
        without_end = self._no_end(ids, logits)
        if self.padding is None:
            return without_end
        too_short = length - spread_padding(self.padding, len(ids)) < self.min_length  # (B,)
        return torch.where(too_short[:, None], without_end, logits)
