"""Greedy decoding and sampling, one token a row and step.

Shapes: B prompts, R num_return_sequences, T tokens of the prompt, V vocab_size.
"""

import torch
from torch import Tensor

from gpt2core.decoding.output import Decoded
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.rows.cached import Rows
from gpt2core.decoding.strategies.choice import Host, TokenBuffer, choose, is_going_on, reads_late, state_of
from gpt2core.decoding.strategies.graphed_choice import GraphedChoice, can_graph_choice


def sample(rows: Rows, request: DecodingRequest) -> Decoded:
    """Continue the prompts; returns B*R rows."""
    options, ids = request.options, request.ids
    logits = rows.append(ids, request.mask)
    copies = options.num_return_sequences
    if copies > 1:
        expanded = torch.arange(len(ids), device=ids.device).repeat_interleave(copies)
        rows.select(expanded)
        ids, logits = ids[expanded], logits[expanded]
    text = TokenBuffer(ids, request.max_length)
    host = Host(late=reads_late(ids.device))
    steps = _Steps(request, ids, host.late)
    choose_next = GraphedChoice(request, logits) if can_graph_choice(request, ids.device) else steps
    while True:
        known = host.read(choose_next(text, logits))
        last = text.ids.shape[1] >= request.max_length
        going_on = known is None or is_going_on(known, request)
        if going_on and last and host.late:
            is_going_on(host.rest(), request)
        if not going_on or last:
            break
        logits = rows.append(text.ids[:, -1:])
    if host.late and not going_on:
        text.drop_last()  # chosen before the end was known
    return steps.decoded(text.ids, text.ids.shape[1] - ids.shape[1])


class _Steps:
    """Chooses each step's tokens, and keeps what the caller asked to see of them."""

    def __init__(self, request: DecodingRequest, ids: Tensor, late: bool) -> None:
        self._request, self._late = request, late
        self._unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        self._scores: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._log_probs: list[Tensor] = []

    def __call__(self, text: TokenBuffer, logits: Tensor) -> Tensor:
        """Append a token a row after logits (B, V); the step's state."""
        options, scores = self._request.options, logits
        for processor in self._request.processors:
            scores = processor(text.ids, scores)
        chosen, flags = choose(scores, self._unfinished, self._request, self._late)
        if options.output_scores:
            self._scores.append(scores)
        if options.output_logits:
            self._logits.append(logits)
        if options.output_log_probs:
            picked = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
            self._log_probs.append(torch.where(self._unfinished, picked, 0.0))
        text.append(chosen)
        self._unfinished = self._unfinished & ~self._request.finished(text.ids)
        return state_of(chosen, flags, self._unfinished)

    def decoded(self, ids: Tensor, count: int) -> Decoded:
        """What was chosen, of the first `count` steps."""
        options = self._request.options
        return Decoded(
            ids,
            scores=tuple(self._scores[:count]) if options.output_scores else None,
            logits=tuple(self._logits[:count]) if options.output_logits else None,
            log_probs=torch.stack(self._log_probs[:count], dim=1) if options.output_log_probs else None,
        )
