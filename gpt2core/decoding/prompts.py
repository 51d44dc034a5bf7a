"""Prompts of different lengths as one left-padded batch, and results of several batches as one.

Shapes: B prompts, R num_return_sequences, T tokens of the longest prompt, L tokens of the longest row.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.decoding.options import GenerationOptions
from gpt2core.decoding.output import GenerateOutput
from gpt2core.errors import UserError


def pad_prompts(
    prompts: Sequence[Sequence[int]], options: GenerationOptions, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Token ids (B, T) int64 and their mask (B, T), None where no prompt is padded."""
    if not prompts:
        raise UserError("token_ids holds no prompt; give at least one.")
    rows = [list(prompt) or [options.bos_token_id] for prompt in prompts]
    longest = max(map(len, rows))
    ids = [[options.pad_id] * (longest - len(row)) + row for row in rows]
    try:
        token_ids = torch.tensor(ids, device=device, dtype=torch.int64)
        if token_ids.ndim != 2:
            raise ValueError
    except (TypeError, ValueError):
        raise UserError("token_ids must hold lists of whole numbers, one list a prompt.") from None
    lengths = torch.tensor([len(row) for row in rows], device=device)
    if bool((lengths == longest).all()):
        return token_ids, None
    mask = torch.arange(longest, device=device) >= longest - lengths[:, None]
    return token_ids, mask.long()


def strip_common_padding(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """ids and mask (B, T) without the columns that are padding in every row; the mask None where no padding is left."""
    first = int(mask.sum(0).ne(0).long().argmax())
    return ids[:, first:], None if bool(mask[:, first:].all()) else mask[:, first:]


def merge_outputs(
    outputs: list[GenerateOutput], groups: list[list[int]], copies: int, ids: Tensor, pad_id: int
) -> GenerateOutput:
    """Results of several batches in the order of the prompts `ids` (B, T), each row's new tokens after column T."""
    total, width = len(ids) * copies, ids.shape[1]
    new = max(out.sequences.shape[1] - out.prompt_length for out in outputs)
    sequences = ids.new_full((total, width + new), pad_id)
    sequences[:, :width] = ids.repeat_interleave(copies, dim=0)
    new_tokens, reasons = ids.new_zeros(total), [""] * total
    log_probs = None if outputs[0].log_probs is None else outputs[0].log_probs.new_zeros(total, new)
    search_scores = None if outputs[0].sequences_scores is None else outputs[0].sequences_scores.new_zeros(total)
    for out, rows in zip(outputs, groups, strict=True):
        places = torch.tensor([row * copies + copy for row in rows for copy in range(copies)], device=ids.device)
        tail = out.sequences[:, out.prompt_length :]
        sequences[places, width:] = F.pad(tail, (0, new - tail.shape[1]), value=pad_id)
        if out.new_tokens is not None:
            new_tokens[places] = out.new_tokens
        if log_probs is not None and out.log_probs is not None:
            log_probs[places] = F.pad(out.log_probs, (0, new - out.log_probs.shape[1]))
        if search_scores is not None and out.sequences_scores is not None:
            search_scores[places] = out.sequences_scores
        for place, reason in zip(places.tolist(), out.finish_reasons, strict=False):
            reasons[place] = reason
    return GenerateOutput(
        sequences,
        sequences_scores=search_scores,
        prompt_length=width,
        new_tokens=new_tokens,
        log_probs=log_probs,
        finish_reasons=tuple(reasons),
    )
