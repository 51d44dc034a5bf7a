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
    host = _Host(late=reads_late(ids.device))
    while True:
        scores = logits
        for processor in processors:
            scores = processor(text.ids, scores)
        chosen, flags = _choose(scores, unfinished, request, host.late)
        if options.output_scores:
            kept_scores.append(scores)
        if options.output_logits:
            kept_logits.append(logits)
        if options.output_log_probs:
            picked = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
            log_probs.append(torch.where(unfinished, picked, 0.0))
        text.append(chosen)
        unfinished = unfinished & ~request.finished(text.ids)
        state = host.read(torch.cat([chosen, flags, unfinished.any()[None].long()]))
        last = text.ids.shape[1] >= request.max_length
        going_on = state is None or _is_going_on(state, request)
        if going_on and last and host.late:
            _is_going_on(host.rest(), request)
        if not going_on or last:
            break
        logits = rows.append(chosen[:, None])
    extra = 0 if going_on or not host.late else 1  # a token that was chosen before the end was known
    text.drop(extra)
    steps = text.ids.shape[1] - ids.shape[1]
    return Decoded(
        text.ids,
        scores=tuple(kept_scores[:steps]) if options.output_scores else None,
        logits=tuple(kept_logits[:steps]) if options.output_logits else None,
        log_probs=torch.stack(log_probs[:steps], dim=1) if log_probs else None,
    )


def reads_late(device: torch.device) -> bool:
    """Whether the host reads a step's tokens after it has queued the next step: a GPU then never waits for Python."""
    return device.type == "cuda"


def _choose(scores: Tensor, unfinished: Tensor, request: DecodingRequest, late: bool) -> tuple[Tensor, Tensor]:
    """A token a row (B,), and flags (2,) int64: a row has no token to choose; its scores are not finite.

    Raises UserError in place of the flags where the host does not read late.
    """
    flags = scores.new_zeros(2, dtype=torch.int64)
    if request.processors and late:
        flags[0] = (scores.amax(-1).isneginf() & unfinished).any()
    elif request.processors:
        check_choice(scores, unfinished)
    if not request.options.do_sample:
        chosen = fast_argmax(scores)
    elif not late:
        chosen = draw(scores, request.generator)
    else:
        probabilities = scores.softmax(-1)
        flags[1] = ~probabilities.sum().isfinite()
        # A GPU ends the process where it is to draw from numbers that are not finite.
        chosen = _draw(torch.where(flags.any(), 1.0, probabilities), request.generator)
    return torch.where(unfinished, chosen, request.options.pad_id), flags


def _is_going_on(state: list[int], request: DecodingRequest) -> bool:
    """Whether a row is unfinished after the step of `state`; streams its tokens. Raises UserError by its flags."""
    *chosen, no_choice, not_finite, unfinished = state
    if no_choice:
        raise no_token_left()
    if not_finite:
        raise scores_not_finite()
    if request.streamer is not None:
        request.streamer.put(torch.tensor(chosen))
    return bool(unfinished)


class _Host:
    """The numbers of each step as the host reads them: at once, or `late`, after the next step is queued."""

    def __init__(self, late: bool) -> None:
        self.late = late
        self._copy: Tensor | None = None
        self._ready: torch.cuda.Event | None = None

    def read(self, numbers: Tensor) -> list[int] | None:
        """Those of this step; if late, those of the step before, None at the first."""
        if not self.late:
            return numbers.tolist()
        before = None if self._copy is None else self.rest()
        self._copy = numbers.to("cpu", non_blocking=True)
        if numbers.is_cuda:
            self._ready = torch.cuda.Event()
            self._ready.record()
        return before

    def rest(self) -> list[int]:
        """Those of the last step."""
        if self._ready is not None:
            self._ready.synchronize()
        assert self._copy is not None
        return self._copy.tolist()


def check_choice(scores: Tensor, unfinished: Tensor) -> None:
    """Raises UserError where a row's scores (B, V) leave no token to choose."""
    if bool((scores.amax(-1).isneginf() & unfinished).any()):
        raise no_token_left()


def no_token_left() -> UserError:
    return UserError(
        rule="every token is forbidden",
        remedy="relax {bad_words_ids}, {suppress_tokens}, {no_repeat_ngram_size}, sequence_bias or a logits_processor",
    )


def scores_not_finite() -> UserError:
    return UserError(
        rule="the scores of the tokens are not finite, so none can be drawn",
        remedy="check {repetition_penalty}, sequence_bias, your logits_processor, and the model's weights",
    )


def probabilities_of(scores: Tensor) -> Tensor:
    """Softmax (B, V). Raises UserError for scores (B, V) that have none."""
    probabilities = scores.softmax(-1)
    if not bool(probabilities.sum().isfinite()):
        raise scores_not_finite()
    return probabilities


def draw(scores: Tensor, generator: Generators) -> Tensor:
    """One token a row, (B,), of scores (B, V); a list of generators holds one for each row."""
    return _draw(probabilities_of(scores), generator)


def _draw(probabilities: Tensor, generator: Generators) -> Tensor:
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

    def drop(self, count: int) -> None:
        self._length -= count
