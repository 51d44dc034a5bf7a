"""Log-probabilities that the model itself gives to texts, whatever search found them."""

from collections.abc import Callable

import torch
from torch import Tensor

from gpt2core.decoding.rows.cached import PastBlockSize, block_size_of
from gpt2core.decoding.rows.opening import open_rows


@torch.inference_mode()
def score_tokens(
    model: Callable[[Tensor], Tensor],
    sequences: Tensor,
    mask: Tensor | None,
    prompt_length: int,
    new_tokens: Tensor,
    past_block_size: PastBlockSize = "refuse",
) -> Tensor:
    """Log-probabilities (B, L - T) fp32 in nats of the new tokens of sequences (B, L); 0 behind a row's end.

    `mask` (B, T) is 0 at left padding of the prompts. One pass a row; past block_size one a token, as it was decoded.
    """
    result = torch.zeros(sequences.shape[0], sequences.shape[1] - prompt_length, device=sequences.device)
    block_size = block_size_of(model) or sequences.shape[1]
    for number, count in enumerate(new_tokens.tolist()):
        start = 0 if mask is None else int((mask[number] == 0).sum())
        row = sequences[number : number + 1, start : prompt_length + count]
        prompt = prompt_length - start
        rows = open_rows(model, row.shape[1], past_block_size)
        if row.shape[1] - 1 <= block_size:
            logits = rows.append_all(row[:, :-1])[:, prompt - 1 :]
        else:
            steps = [rows.append(row[:, :prompt])]
            steps += [rows.append(row[:, place : place + 1]) for place in range(prompt, row.shape[1] - 1)]
            logits = torch.stack(steps, dim=1)  # (1, count, V)
        picked = logits.gather(-1, row[:, prompt:, None])[..., 0] - logits.logsumexp(-1)
        result[number, :count] = picked[0]
    return result
