"""What a decoding strategy is given, and the interfaces that it meets.

Shapes: B prompts, T prompt tokens, L tokens so far, V vocab_size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpt2core.decoding.options import GenerationOptions, LogitsProcessor

# One generator for the whole batch, one for each sequence, or torch's global one.
Generators = torch.Generator | list[torch.Generator] | None


class Streamer(Protocol):
    """Takes tokens as they are chosen; transformers' streamers fit."""

    def put(self, tokens: Tensor) -> None:
        """First the prompt (B, T), then each step's tokens (B,), on the CPU."""

    def end(self) -> None:
        """No more tokens follow."""


@dataclass(frozen=True)
class DecodingRequest:
    """One batch to decode: every strategy is called as `strategy(rows, request)`."""

    ids: Tensor  # (B, T) int64
    mask: Tensor | None  # (B, T) int64, 0 at left padding; None without padding
    options: GenerationOptions
    processors: Sequence[LogitsProcessor]  # applied in this order at each step
    max_length: int  # most tokens of a row, its prompt included
    finished: Callable[[Tensor], Tensor]  # ids (rows, L) -> (rows,) bool, whether the last token ends the row
    generator: Generators = None
    streamer: Streamer | None = None
