"""What decoding gives back. Shapes: B prompts, R num_return_sequences, L tokens of the longest row, V vocab_size."""

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Decoded:
    """What a strategy returns."""

    sequences: Tensor  # (B*R, L) int64, prompt included, finished rows right-padded
    scores: tuple[Tensor, ...] | None = None  # a step: (rows, V) fp32 after the processors
    logits: tuple[Tensor, ...] | None = None  # a step: (rows, V) fp32 of the model
    sequences_scores: Tensor | None = None  # (B*R,) beam searches only
    beam_indices: Tensor | None = None  # (B*R, L - T) int64, beam searches only, -1 after the end
    log_probs: Tensor | None = None  # (B*R, L - T) fp32, nats, by the model itself; 0 where a row is padding


@dataclass(frozen=True)
class GenerateOutput(Decoded):
    """What `generate(..., return_dict_in_generate=True)` returns."""

    prompt_length: int = 0  # T: new tokens begin at this column
    new_tokens: Tensor | None = None  # (B*R,) int64, the end of text included
    finish_reasons: tuple[str, ...] = ()  # (B*R,) each eos, stop, length or time

    def copy(self) -> "GenerateOutput":
        """The same with tensors of its own."""
        return replace(self, **{field.name: _copied(getattr(self, field.name)) for field in fields(self)})


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_copied(part) for part in value)
    return value.clone() if isinstance(value, Tensor) else value
