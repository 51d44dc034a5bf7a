"""Contrastive search (Su et al. 2022), with the rules of `transformers` 4's `_contrastive_search`.

Of the `top_k` likeliest next tokens it chooses the one with the largest
(1 - penalty_alpha) * probability - penalty_alpha * (greatest cosine similarity of its hidden state to an earlier one).

Shapes: B prompts, K top_k, T prompt tokens, L tokens so far, V vocab_size, C n_embd.
"""

import torch
from torch import Tensor

from gpt2core.decoding.logits.processors import apply
from gpt2core.decoding.logits.topk import fast_topk
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.rows.cached import SearchRows
from gpt2core.errors import UserError


def contrastive_search(rows: SearchRows, request: DecodingRequest) -> Decoded:
    """Continue the prompts; each step runs the K candidates of all prompts in one forward pass.

    Deterministic: the generator is not used. Raises UserError where the model gives no hidden states.
    """
    options, ids = request.options, request.ids
    logits = rows.append(ids, request.mask)  # (B, V)
    if rows.hidden is None:
        raise UserError("contrastive search compares hidden states, which a plain callable does not give; pass a GPT.")
    context = _Context(rows.hidden, request.mask, request.max_length - ids.shape[1])
    alpha, K = options.penalty_alpha or 0.0, min(options.top_k or 1, logits.shape[-1])
    first_rows = torch.arange(len(ids), device=ids.device) * K
    rows.select(torch.arange(len(ids), device=ids.device).repeat_interleave(K))  # a row for each candidate
    unfinished = torch.ones_like(ids[:, 0], dtype=torch.bool)
    scores, raw = [], []
    while True:
        processed = apply(request.processors, ids, logits)
        if options.output_scores:
            scores.append(processed)
        if options.output_logits:
            raw.append(logits)
        probs, tokens = fast_topk(processed.softmax(-1), K)  # (B, K)
        candidate_logits = rows.append(tokens.view(-1, 1))  # (B*K, V)
        hidden = _normalise(rows.hidden[:, -1]).view(len(ids), K, -1)
        choice = ((1 - alpha) * probs - alpha * context.similarity(hidden)).argmax(-1)  # (B,)
        chosen_rows = first_rows + choice
        context.append(hidden.flatten(0, 1)[chosen_rows])
        chosen = torch.where(unfinished, tokens.flatten()[chosen_rows], options.pad_id)
        ids = torch.cat([ids, chosen[:, None]], 1)
        if request.streamer is not None:
            request.streamer.put(chosen.cpu())
        unfinished = unfinished & ~request.finished(ids)
        if ids.shape[1] >= request.max_length or not bool(unfinished.any()):
            break
        rows.select(chosen_rows.repeat_interleave(K))
        logits = candidate_logits[chosen_rows]
    return Decoded(
        ids,
        scores=tuple(scores) if options.output_scores else None,
        logits=tuple(raw) if options.output_logits else None,
    )


class _Context:
    """Normalised hidden states of the tokens so far, so that a step normalises its candidates only."""

    def __init__(self, hidden: Tensor, mask: Tensor | None, new_tokens: int) -> None:
        """`hidden` (B, T, C) of the prompts; `mask` (B, T) is 0 at padding, which nothing is compared with."""
        B, T, C = hidden.shape
        self._store = hidden.new_empty(B, T + new_tokens, C, dtype=torch.float32)
        self._store[:, :T] = _normalise(hidden)
        self._length = T
        self._is_padding = None if mask is None else mask[:, -T:] == 0  # a prompt past block_size was cut on the left

    def append(self, hidden: Tensor) -> None:
        """One token's (B, C), of length 1."""
        self._store[:, self._length] = hidden
        self._length += 1

    def similarity(self, hidden: Tensor) -> Tensor:
        """Greatest cosine similarity (B, K) of hidden (B, K, C), of length 1, to a token so far."""
        cosines = hidden @ self._store[:, : self._length].transpose(1, 2)  # (B, K, L)
        if self._is_padding is not None:
            prompt = cosines[..., : self._is_padding.shape[1]]
            prompt.masked_fill_(self._is_padding[:, None], -torch.inf)
        return cosines.amax(-1)


def _normalise(hidden: Tensor) -> Tensor:
    hidden = hidden.float()
    return hidden / hidden.norm(dim=-1, keepdim=True)
