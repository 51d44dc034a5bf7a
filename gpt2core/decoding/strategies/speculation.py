"""Speculative decoding (Leviathan et al. 2023): a drafter proposes some tokens, one forward pass checks them all.

Reading the weights once for several tokens costs little more than for one, so an accepted token is nearly free. A
rejected one changes nothing: the token that the model itself chooses is used.

Shapes: L tokens so far, K draft tokens, V vocab_size. The batch is always 1.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gpt2core.decoding.logits.processors import apply
from gpt2core.decoding.options import LogitsProcessor
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.rows.cached import Rows, check_finite
from gpt2core.decoding.strategies.choice import check_choice


class Drafter(Protocol):
    """Proposes draft tokens, and says how the model then chooses its own."""

    def propose(self, ids: Tensor, vocab_size: int, room: int) -> list[int]:
        """Draft tokens to follow ids (1, L), possibly none; those after the first `room` are not checked."""

    def choose(self, scores: Tensor, draft: list[int]) -> Tensor:
        """The model's tokens (1..K + 1,) by scores (K + 1, V), at least up to the first that differs from the draft."""

    def record_acceptance(self, accepted: int) -> None:
        """The first `accepted` draft tokens were right."""

    def append(self, token: int) -> None:
        """`token` was added to the text."""


def speculate(rows: Rows, request: DecodingRequest, drafter: Drafter) -> Decoded:
    """Continue one prompt; returns what `sampling.sample` does."""
    options, ids, max_length = request.options, request.ids, request.max_length
    pending = rows.append(ids, request.mask)  # (1, V) after the prompt; (0, V) from the second pass on
    kept_scores: list[Tensor] = []
    kept_logits: list[Tensor] = []
    log_probs: list[Tensor] = []
    while True:
        length = ids.shape[1]
        # A window that slides for a draft would slide sooner than without it.
        room = max(0, min(max_length - length - 1, rows.room - (length - rows.length)))
        draft = drafter.propose(ids, pending.shape[-1], room) if length + 1 < max_length else []
        checked = ids.new_tensor(draft[:room])
        text = torch.cat([ids[0], checked])[None]
        logits = torch.cat([pending, _read(rows, text[:, rows.length :], pending)])  # (K + 1, V)
        pending = logits[:0]
        scores = _process(request.processors, text, length, logits)
        chosen = drafter.choose(scores, draft)
        compared = min(len(checked), len(chosen))
        accepted = int((chosen[:compared] == checked[:compared]).long().cumprod(0).sum())
        ids, over = _extend(ids, chosen[: accepted + 1], request.finished)
        new = ids[0, length:]
        drafter.record_acceptance(accepted)
        logits, scores = logits[: len(new)], scores[: len(new)]
        if options.output_scores:
            kept_scores += scores[:, None]
        if options.output_logits:
            kept_logits += logits[:, None]
        if options.output_log_probs:
            log_probs.append(logits.gather(1, new[:, None])[:, 0] - logits.logsumexp(-1))
        for token in new.cpu():
            drafter.append(int(token))
            if request.streamer is not None:
                request.streamer.put(token[None])
        if over or ids.shape[1] >= max_length:
            break
        rows.crop(ids.shape[1] - 1)
    return Decoded(
        ids,
        scores=tuple(kept_scores) if options.output_scores else None,
        logits=tuple(kept_logits) if options.output_logits else None,
        log_probs=torch.cat(log_probs)[None] if log_probs else None,
    )


def _read(rows: Rows, tokens: Tensor, like: Tensor) -> Tensor:
    """Logits (K, V) after each of tokens (1, K), possibly none; of the dtype of `like` (·, V)."""
    if tokens.shape[1] == 0:
        return like[:0]
    logits = rows.append_all(tokens)[0]
    check_finite(logits)  # a non-finite row would spread to the rows before it in the checks that follow
    return logits


def _process(processors: Sequence[LogitsProcessor], text: Tensor, length: int, logits: Tensor) -> Tensor:
    """logits (K + 1, V) after the processors, each with the part of text (1, L + K) before it.

    Cut before the first row in which every token is forbidden. Raises UserError where that is row 0.
    """
    if not processors:
        return logits
    scores = torch.cat([apply(processors, text[:, : length + i], row[None]) for i, row in enumerate(logits)])
    check_choice(scores[:1], torch.ones_like(scores[:1, 0], dtype=torch.bool))
    possible = ~scores.amax(-1).isneginf()
    return scores[: int(possible.long().cumprod(0).sum())]


def _extend(ids: Tensor, tokens: Tensor, finished: Callable[[Tensor], Tensor]) -> tuple[Tensor, bool]:
    """ids (1, L) with tokens (·,) up to the first that ends the text, and whether one did."""
    text = torch.cat([ids, tokens[None]], 1)
    for length in range(ids.shape[1] + 1, text.shape[1] + 1):
        if bool(finished(text[:, :length])):
            return text[:, :length], True
    return text, False
