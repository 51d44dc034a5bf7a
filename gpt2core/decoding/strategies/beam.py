"""Beam search and beam sampling, with the rules of `transformers` 5 (`_beam_search` in generation/utils.py).

A step scores every next token of every beam and keeps more of the best candidates than there are beams, so that enough
remain when some end. Those that end among the best `num_beams` become hypotheses.

Shapes: B prompts, N num_beams, M texts of a prompt, K candidates of a prompt, R num_return_sequences, T prompt tokens,
S new tokens, V vocab_size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.decoding.logits.processors import apply
from gpt2core.decoding.logits.topk import fast_topk
from gpt2core.decoding.options import GenerationOptions
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.request import DecodingRequest, Generators
from gpt2core.decoding.rows.cached import SearchRows

# Score of an excluded text. Finite as in transformers: sums with it round alike, so that ties resolve alike.
RULED_OUT = -1e9


@dataclass(frozen=True)
class Beams:
    """Texts of each prompt, all of one length."""

    ids: Tensor  # (B, M, T + S) int64
    parents: Tensor  # (B, M, S) int64, the row that each new token continued; -1 where a hypothesis is padded
    scores: Tensor  # (B, M) sum of log-probabilities; of hypotheses, divided by the length penalty

    def take(self, index: Tensor) -> "Beams":
        """Texts `index` (B, M') of each prompt."""
        where = index[..., None]
        return Beams(
            self.ids.take_along_dim(where, 1), self.parents.take_along_dim(where, 1), self.scores.gather(1, index)
        )

    def join(self, other: "Beams") -> "Beams":
        """The texts of both."""
        return Beams(
            torch.cat([self.ids, other.ids], 1),
            torch.cat([self.parents, other.parents], 1),
            torch.cat([self.scores, other.scores], 1),
        )

    def padded(self, pad: int) -> "Beams":
        """The same texts, one padding token longer."""
        return Beams(F.pad(self.ids, (0, 1), value=pad), F.pad(self.parents, (0, 1), value=-1), self.scores)

    def with_scores(self, scores: Tensor) -> "Beams":
        return Beams(self.ids, self.parents, scores)


@dataclass(frozen=True)
class _Hypotheses:
    """The best ended texts of each prompt so far, best first; where there are fewer than N, placeholders."""

    beams: Beams
    ended: Tensor  # (B, N) bool, False for a placeholder
    improvable: Tensor  # (B, 1) bool, whether a running beam could still beat the worst of them


def beam_search(rows: SearchRows, request: DecodingRequest) -> Decoded:
    """Continue the prompts; returns the R best texts of each, best first, in rows B*R.

    With `do_sample`, candidates are drawn without replacement by their summed scores; a list of generators holds one
    for each prompt. `sequences_scores` are sums of log-probabilities after the processors, divided by
    the number of new tokens (the end included) to the power of `length_penalty`.
    """
    options, max_length = request.options, request.max_length
    N, first = options.num_beams, request.ids.shape[1] + 1
    running, row_numbers = start_beams(request.ids, N)
    running = running.with_scores(only_first(running.scores))
    hypotheses = _no_hypotheses(running)
    logits = append_prompts(rows, request.ids, request.mask, N)  # (B*N, V)
    scores, raw = [], []
    for length in range(first, max_length + 1):
        log_probs = apply(request.processors, running.ids.flatten(0, 1), logits.log_softmax(-1))
        if options.output_scores:
            scores.append(log_probs)
        if options.output_logits:
            raw.append(logits)
        candidates = continue_beams(running, log_probs, row_numbers, options, request.generator)
        ended = candidates_end(candidates, request.finished, at_limit=length == max_length)  # (B, K)
        hypotheses = _add_ended(hypotheses, candidates, ended, options)
        best = (candidates.scores + ended.float() * RULED_OUT).topk(N)
        running = candidates.take(best.indices).with_scores(best.values)
        hypotheses = _check_improvable(hypotheses, running.scores, length, max_length, first - 1, options)
        if _is_over(hypotheses, ended, options):
            break
        logits = append_chosen(rows, running, row_numbers)
    return gather_output(hypotheses.beams, first - 1, options, scores, raw)


def start_beams(ids: Tensor, num_beams: int) -> tuple[Beams, Tensor]:
    """The prompts ids (B, T) as beams, all scores 0; and the beams' row numbers, (B, N)."""
    B = len(ids)
    row_numbers = torch.arange(B * num_beams, device=ids.device).view(B, num_beams)
    none = row_numbers.new_empty(B, num_beams, 0)
    scores = torch.zeros(B, num_beams, device=ids.device)
    return Beams(ids[:, None].expand(-1, num_beams, -1), none, scores), row_numbers


def only_first(scores: Tensor) -> Tensor:
    """Scores (B, N) that exclude all beams but the first: all hold the same prompt and would find the same texts."""
    return F.pad(scores[:, :1], (0, scores.shape[1] - 1), value=RULED_OUT)


def append_prompts(rows: SearchRows, ids: Tensor, mask: Tensor | None, copies: int) -> Tensor:
    """Read each prompt once, then give it `copies` rows; returns logits (B*copies, V)."""
    logits = rows.append(ids, mask)
    each = torch.arange(len(ids), device=ids.device).repeat_interleave(copies)
    rows.select(each)
    return logits[each]


def append_chosen(rows: SearchRows, running: Beams, row_numbers: Tensor) -> Tensor:
    """Let rows follow their beams and append the beams' last tokens; returns logits (B*N, V)."""
    parents = running.parents[..., -1]
    if not torch.equal(parents, row_numbers):  # often no beam moved, and copying the cache is most of a step
        rows.select(parents.flatten())
    return rows.append(running.ids[..., -1].reshape(-1, 1))


def continue_beams(
    running: Beams, log_probs: Tensor, row_numbers: Tensor, options: GenerationOptions, generator: Generators
) -> Beams:
    """The K candidates: beams (B, N) with one of the next tokens of log_probs (B*N, V).

    K leaves num_beams candidates that do not end in an end of text, whatever else does.
    """
    B, N = running.scores.shape
    V = log_probs.shape[-1]
    totals = (log_probs.view(B, N, V) + running.scores[..., None]).view(B, N * V)
    count = max(2, 1 + len(options.eos_ids)) * N
    if options.do_sample:
        index = _draw(totals.softmax(-1), count, generator)
        scores = totals.gather(1, index)
    else:
        scores, index = fast_topk(totals, count)
    beam, token = index // V, index % V
    chosen = running.take(beam)
    parents = row_numbers.gather(1, beam)
    return Beams(
        torch.cat([chosen.ids, token[..., None]], -1), torch.cat([chosen.parents, parents[..., None]], -1), scores
    )


def _draw(probs: Tensor, count: int, generator: Generators) -> Tensor:
    """`count` of probs (B, N*V) without replacement, (B, count)."""
    if isinstance(generator, list):
        pairs = zip(probs, generator, strict=True)
        return torch.stack([torch.multinomial(row, count, generator=one) for row, one in pairs])
    return torch.multinomial(probs, count, generator=generator)


def candidates_end(candidates: Beams, finished: Callable[[Tensor], Tensor], *, at_limit: bool) -> Tensor:
    """Which candidates are complete texts, (B, K) bool."""
    if at_limit:
        return torch.ones_like(candidates.scores, dtype=torch.bool)
    return finished(candidates.ids.flatten(0, 1)).view(candidates.scores.shape)


def _no_hypotheses(running: Beams) -> _Hypotheses:
    ended = torch.zeros_like(running.scores, dtype=torch.bool)
    placeholders = running.with_scores(torch.full_like(running.scores, RULED_OUT))
    return _Hypotheses(placeholders, ended, torch.ones_like(ended[:, :1]))


def _add_ended(hypotheses: _Hypotheses, candidates: Beams, ended: Tensor, options: GenerationOptions) -> _Hypotheses:
    """The N best of the hypotheses and of the candidates that ended among the first N."""
    N = options.num_beams
    new = ended & (torch.arange(ended.shape[1], device=ended.device) < N)
    steps = candidates.parents.shape[-1]
    scores = candidates.scores / steps**options.length_penalty
    if options.early_stopping is True:
        scores = scores + hypotheses.ended.all(-1, keepdim=True).float() * RULED_OUT
    scores = scores + (~hypotheses.improvable).float() * RULED_OUT
    scores = scores + (~new).float() * RULED_OUT
    both = hypotheses.beams.padded(_padding(options)).join(candidates.with_scores(scores))
    index = both.scores.topk(N).indices
    return _Hypotheses(both.take(index), torch.cat([hypotheses.ended, new], 1).gather(1, index), hypotheses.improvable)


def _check_improvable(
    hypotheses: _Hypotheses,
    running_scores: Tensor,
    length: int,
    max_length: int,
    prompt_length: int,
    options: GenerationOptions,
) -> _Hypotheses:
    """Whether the best running beam (B, N) may yet beat the worst hypothesis, if its score stays as it is.

    A positive length_penalty favours long texts: "never" takes the longest that may be, False the present length.
    """
    long = options.early_stopping == "never" and options.length_penalty > 0
    steps = (max_length if long else length) - prompt_length
    attainable = running_scores[:, :1] / steps**options.length_penalty
    worst = hypotheses.beams.scores.amin(1, keepdim=True).where(hypotheses.ended, RULED_OUT)
    improvable = hypotheses.improvable & (attainable > worst).any(-1, keepdim=True)
    return _Hypotheses(hypotheses.beams, hypotheses.ended, improvable)


def _is_over(hypotheses: _Hypotheses, ended: Tensor, options: GenerationOptions) -> bool:
    over = ~hypotheses.improvable.any() | ended.all()
    if options.early_stopping is True:
        over = over | hypotheses.ended.all()
    return bool(over)


def _padding(options: GenerationOptions) -> int:
    """What follows a hypothesis: as in transformers' beam search, the end of text also where pad_token_id is 0.

    Where nothing ends a text, transformers pads with -1, which is no token; here it is pad_id as everywhere.
    """
    return options.pad_id or next(iter(options.eos_ids), 0)


def gather_output(
    texts: Beams, prompt_length: int, options: GenerationOptions, scores: list[Tensor], logits: list[Tensor]
) -> Decoded:
    """The first R of texts (B, M) of each prompt, as rows (B*R), cut to the longest."""
    R = options.num_return_sequences
    parents = texts.parents[:, :R].flatten(0, 1)
    longest = int((parents >= 0).sum(-1).max())
    return Decoded(
        sequences=texts.ids[:, :R, : prompt_length + longest].flatten(0, 1),
        scores=tuple(scores) if options.output_scores else None,
        logits=tuple(logits) if options.output_logits else None,
        sequences_scores=texts.scores[:, :R].flatten().float(),
        beam_indices=parents[:, :longest],
    )
