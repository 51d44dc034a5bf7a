"""When a row is finished, and why it was.

Shapes: B rows, T tokens of the prompt, L tokens of the longest row.
"""

import time

import torch
from torch import Tensor

from gpt2core.decoding.options import GenerationOptions
from gpt2core.decoding.stopping import StopStrings
from gpt2core.tokenizer import Tokenizer


class StopTest:
    """Says which rows of ids (B, L) are finished by their last token, or by the time that is up."""

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
        # A row that a stop string ended is padded, as a rule with the end of text.
        if stop_strings is not None and end and bool(stop_strings(ids, prompt_length)):
            reason = "stop"
        elif eos is not None:
            end, reason = eos + 1, "eos"
        else:
            end, reason = len(row), "length" if prompt_length + len(row) >= max_length else "time"
        counts.append(end)
        reasons.append(reason)
    return torch.tensor(counts, device=sequences.device), tuple(reasons)
