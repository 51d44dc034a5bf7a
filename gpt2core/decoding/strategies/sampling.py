"""Greedy decoding and sampling, one token a row and step.

Shapes: B prompts, R num_return_sequences, T tokens of the prompt, V vocab_size.
"""

import torch
from torch import Tensor

from gpt2core.decoding.logits.topk import fast_argmax
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.request import DecodingRequest, Generators
from gpt2core.decoding.rows.cached import Rows
from gpt2core.errors import UserError


def sample(rows: Rows, request: DecodingRequest) -> Decoded:
    """Continue the prompts; returns B*R rows."""
    options, processors, ids = request.options, request.processors, request.ids
    logits = rows.append(ids, request.mask)
    copies = options.num_return_sequences
    if copies > 1:
        expanded = torch.arange(len(ids), device=ids.device).repeat_interleave(copies)
        rows.select(expanded)
        ids, logits = ids[expanded], logits[expanded]
    text = _TokenBuffer(ids, request.max_length)
    unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    kept_scores, kept_logits, log_probs = [], [], []
    while True:
        scores = logits
        for processor in processors:
            scores = processor(text.ids, scores)
        if processors:
            check_choice(scores, unfinished)
        chosen = draw(scores, request.generator) if options.do_sample else fast_argmax(scores)
        chosen = torch.where(unfinished, chosen, options.pad_id)
        if options.output_scores:
            kept_scores.append(scores)
        if options.output_logits:
            kept_logits.append(logits)
        if options.output_log_probs:
            picked = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
            log_probs.append(torch.where(unfinished, picked, 0.0))
        text.append(chosen)
        if request.streamer is not None:
            request.streamer.put(chosen.cpu())
        unfinished = unfinished & ~request.finished(text.ids)
        if text.ids.shape[1] >= request.max_length or not bool(unfinished.any()):
            break
        logits = rows.append(chosen[:, None])
    return Decoded(
        text.ids,
        scores=tuple(kept_scores) if options.output_scores else None,
        logits=tuple(kept_logits) if options.output_logits else None,
        log_probs=torch.stack(log_probs, dim=1) if log_probs else None,
    )


def check_choice(scores: Tensor, unfinished: Tensor) -> None:
    """Raises UserError where a row's scores (B, V) leave no token to choose."""
    if bool((scores.amax(-1).isneginf() & unfinished).any()):
        raise UserError(
            rule="every token is forbidden",
            remedy="relax {bad_words_ids}, {suppress_tokens}, {no_repeat_ngram_size}, sequence_bias or a "
            "logits_processor",
        )


def probabilities_of(scores: Tensor) -> Tensor:
    """Softmax (B, V). Raises UserError for scores (B, V) that have none."""
    probabilities = scores.softmax(-1)
    if not bool(probabilities.sum().isfinite()):
        raise UserError(
            rule="the scores of the tokens are not finite, so none can be drawn",
            remedy="check {repetition_penalty}, sequence_bias, your logits_processor, and the model's weights",
        )
    return probabilities


def draw(scores: Tensor, generator: Generators) -> Tensor:
    """One token a row, (B,), of scores (B, V); a list of generators holds one for each row."""
    probabilities = probabilities_of(scores)
    if isinstance(generator, list):
        drawn = [
            torch.multinomial(row[None], 1, generator=own) for row, own in zip(probabilities, generator, strict=True)
        ]
        return torch.cat(drawn)[:, 0]
    return torch.multinomial(probabilities, num_samples=1, generator=generator)[:, 0]


class _TokenBuffer:
    """Token ids (B, L) in a buffer of `max_length` columns, so that a step does not copy the earlier tokens."""

    def __init__(self, ids: Tensor, max_length: int) -> None:
        self._store = ids.new_empty(len(ids), max_length)
        self._store[:, : ids.shape[1]] = ids
        self._length = ids.shape[1]

    @property
    def ids(self) -> Tensor:
        return self._store[:, : self._length]

    def append(self, tokens: Tensor) -> None:
        self._store[:, self._length] = tokens
        self._length += 1
