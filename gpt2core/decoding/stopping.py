"""When a row is finished, and why: end of text, stop strings, the time limit.

Shapes: B rows, T tokens of the prompt, L tokens so far.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2core.decoding.options import GenerationOptions
from gpt2core.tokenizer import Tokenizer


class StopStrings:
    """A row stops when a stop string lies in its text and ends in its last token: `transformers`' StopStringCriteria.

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
        """Which rows of ids (B, L) int64 stop, (B,) bool; none while they hold only the prompt."""
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
        """Whether a stop string can end in this token: a quick test that spares most tokens the search in the text."""
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


class StopTest:
    """Which rows of ids (B, L) are finished, (B,) bool: by their last token, or because the deadline has passed."""

    def __init__(
        self, options: GenerationOptions, prompt_length: int, tokenizer: Tokenizer | None, deadline: float | None
    ) -> None:
        self.eos_ids, self.prompt_length, self.deadline = options.eos_ids, prompt_length, deadline
        self.stop_strings = stop_strings_of(options, tokenizer)

    def __call__(self, ids: Tensor) -> Tensor:
        last = ids[:, -1]
        done = torch.zeros_like(last, dtype=torch.bool)
        for eos in self.eos_ids:
            done |= last == eos
        if self.stop_strings is not None:
            done |= self.stop_strings(ids, self.prompt_length)
        if self.deadline is not None and time.monotonic() > self.deadline:
            done |= True
        return done


def stop_strings_of(options: GenerationOptions, tokenizer: Tokenizer | None) -> StopStrings | None:
    if options.stop_strings is None or tokenizer is None:
        return None
    return StopStrings(options.stop_strings, tokenizer)


def describe_endings(
    sequences: Tensor, options: GenerationOptions, prompt_length: int, max_length: int, tokenizer: Tokenizer | None
) -> tuple[Tensor, tuple[str, ...]]:
    """New tokens of each row of sequences (B, L), the end of text included, int64 (B,); and why each row ended."""
    stop_strings = stop_strings_of(options, tokenizer)
    counts: list[int] = []
    reasons: list[str] = []
    for row in sequences[:, prompt_length:].tolist():
        eos = next((place for place, token in enumerate(row) if token in options.eos_ids), None)
        end = eos if eos is not None else len(row)
        if stop_strings is not None and eos is None:
            while end and row[end - 1] == options.pad_id:
                end -= 1
        ids = sequences[len(counts) : len(counts) + 1, : prompt_length + end]
        # Padding after a stop string usually is the end of text, so the stop string is tested first.
        if stop_strings is not None and end and bool(stop_strings(ids, prompt_length)):
            reason = "stop"
        elif eos is not None:
            end, reason = eos + 1, "eos"
        else:
            end, reason = len(row), "length" if prompt_length + len(row) >= max_length else "time"
        counts.append(end)
        reasons.append(reason)
    return torch.tensor(counts, device=sequences.device), tuple(reasons)
