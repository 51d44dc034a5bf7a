"""Stop strings: which rows have just said one. Semantics of `transformers`' StopStringCriteria.

Shapes: B rows, T tokens so far.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2core.tokenizer import Tokenizer


class StopStrings:
    """A row stops when a stop string lies in its text and ends in its last token.

    It may begin and end inside a token, and begin in the prompt. Text is compared as UTF-8 bytes, `<|endoftext|>`
    spelled out; ids outside the tokenizer's vocabulary stand for no text that a stop string could hold.
    """

    def __init__(self, stop_strings: str | Sequence[str], tokenizer: Tokenizer) -> None:
        strings = [stop_strings] if isinstance(stop_strings, str) else stop_strings
        self._stops = tuple(string.encode("utf-8") for string in strings)
        self._window = max(map(len, self._stops))  # tokens: each has a byte at least
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes | None] = {}
        self._ends: dict[int, bool] = {}

    def __call__(self, ids: Tensor, prompt_length: int = 0) -> Tensor:
        """Which rows of ids (B, T) int64 stop, (B,) bool; none while they hold only the prompt."""
        if ids.shape[1] <= prompt_length:
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        tails = ids[:, -self._window :].tolist()
        return torch.tensor([self._stops_at(tail) for tail in tails], dtype=torch.bool, device=ids.device)

    def _stops_at(self, tail: list[int]) -> bool:
        if not self._may_end(tail[-1]):
            return False
        parts: list[bytes] = []
        for token_id in reversed(tail):
            part = self._token(token_id)
            if part is None:
                break
            parts.append(part)
        before = sum(map(len, parts[1:]))
        text = b"".join(reversed(parts))
        return any(text.find(stop, max(0, before - len(stop) + 1)) >= 0 for stop in self._stops)

    def _may_end(self, token_id: int) -> bool:
        """Whether a stop string can end in this token; it cannot in most, so no text is put together."""
        known = self._ends.get(token_id)
        if known is None:
            token = self._token(token_id)
            known = token is not None and any(
                stop in token or any(stop.endswith(token[:size]) for size in range(1, len(token) + 1))
                for stop in self._stops
            )
            self._ends[token_id] = known
        return known

    def _token(self, token_id: int) -> bytes | None:
        if token_id not in self._bytes:
            known = 0 <= token_id < self._tokenizer.n_vocab
            self._bytes[token_id] = self._tokenizer.token_bytes([token_id]) if known else None
        return self._bytes[token_id]
