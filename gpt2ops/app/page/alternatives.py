"""How likely the model itself found each token of a text, and what it found likelier.

Shapes: T tokens, V vocab_size, C n_embd.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.rows.cached import PastBlockSize
from gpt2core.decoding.rows.opening import open_rows
from gpt2core.model import GPT

SHOWN = 5
POSITIONS_AT_ONCE = 64  # their logits are all that is kept


@dataclass(frozen=True)
class Choice:
    """A token of a text: its probability, its rank among all (1: the likeliest), and the likeliest at its place."""

    token_id: int
    probability: float
    rank: int
    likeliest: tuple[tuple[int, float], ...]


@torch.inference_mode()
def token_choices(
    model: GPT | PackedGPT,
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    past_block_size: PastBlockSize = "refuse",
) -> list[Choice]:
    """A choice for each of `token_ids` after the prompt, which is not empty.

    The probabilities are those of the model alone: before the temperature, what cuts the distribution, and penalties.
    One pass; past block_size one a token, as the text was decoded.
    """
    if not token_ids:
        return []
    first = len(prompt_ids)
    ids = torch.tensor([[*prompt_ids, *token_ids]], device=_device(model))  # (1, T)
    rows = open_rows(model, ids.shape[1], past_block_size)
    if ids.shape[1] - 1 <= model.config.block_size:
        rows.append(ids[:, :-1])
        assert rows.hidden is not None
        parts = zip(
            rows.hidden[0, first - 1 :].split(POSITIONS_AT_ONCE), ids[0, first:].split(POSITIONS_AT_ONCE), strict=True
        )
        return [choice for hidden, chosen in parts for choice in _choices(model.lm_head(hidden).float(), chosen)]
    choices = _choices(rows.append(ids[:, :first]), ids[0, first : first + 1])
    for place in range(first, ids.shape[1] - 1):
        choices += _choices(rows.append(ids[:, place : place + 1]), ids[0, place + 1 : place + 2])
    return choices


def _choices(logits: Tensor, chosen: Tensor) -> list[Choice]:
    """One for each row of logits (T, V); `chosen` (T,) is what stands there."""
    probabilities = logits.softmax(-1)
    own = probabilities.gather(1, chosen[:, None])  # (T, 1)
    ranks = (probabilities > own).sum(1) + 1
    top = probabilities.topk(min(SHOWN, probabilities.shape[1]), dim=1)
    return [
        Choice(token_id, probability, rank, tuple(zip(ids, values, strict=True)))
        for token_id, probability, rank, ids, values in zip(
            chosen.tolist(), own[:, 0].tolist(), ranks.tolist(), top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]


def _device(model: GPT | PackedGPT) -> torch.device:
    return torch.device("cpu") if isinstance(model, PackedGPT) else model.wte.weight.device
