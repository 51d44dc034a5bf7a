"""Diverse beam search (Vijayakumar et al. 2016), with the rules of `transformers` 4's `_group_beam_search`.

The beams are split into groups that are extended one after the other; a token is made less likely by
`diversity_penalty` for each beam of an earlier group that took it in the same step (Hamming diversity). Each group is
a beam search of its own, with its own hypotheses.

Shapes: B prompts, N num_beams, G num_beam_groups, n = N / G beams of a group, K candidates of a group, R
num_return_sequences, T prompt tokens, S new tokens, V vocab_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gpt2core.decoding.logits.processors import apply
from gpt2core.decoding.options import GenerationOptions, LogitsProcessor
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.rows.cached import SearchRows
from gpt2core.decoding.strategies.beam import (
    Beams,
    append_chosen,
    append_prompts,
    candidates_end,
    continue_beams,
    gather_output,
    only_first,
    start_beams,
)


@dataclass
class _Group:
    """The beams of a group, for all prompts."""

    running: Beams  # (B, n)
    row_numbers: Tensor  # (B, n) int64, which of the B*N rows they are
    hypotheses: Beams  # (B, n) scores fp64 by length penalty, best first; -inf for a placeholder
    done: Tensor  # (B,) bool


def group_beam_search(rows: SearchRows, request: DecodingRequest) -> Decoded:
    """Continue the prompts; returns the R best texts of each among all groups, best first, in rows B*R.

    Scores include the diversity penalty. Deterministic: the generator is not used.
    """
    options, ids, max_length = request.options, request.ids, request.max_length
    N, prompt_length = options.num_beams, ids.shape[1]
    groups, row_numbers = _start(ids, options)
    logits = append_prompts(rows, ids, request.mask, N)  # (B*N, V)
    scores, raw = [], []
    for length in range(prompt_length + 1, max_length + 1):
        step_scores = []
        taken = ids.new_empty(len(ids), 0)  # (B, n * groups before) tokens of this step
        for group in groups:
            own = logits[group.row_numbers.flatten()]
            chain = _with_diversity(request.processors, taken, options)
            log_probs = apply(chain, group.running.ids.flatten(0, 1), own.log_softmax(-1))
            step_scores.append(log_probs.view(len(ids), -1, log_probs.shape[-1]))
            _advance(group, log_probs, request)
            taken = torch.cat([taken, group.running.ids[..., -1]], 1)
        if options.output_scores:
            scores.append(torch.cat(step_scores, 1).flatten(0, 1))
        if options.output_logits:
            raw.append(logits)
        if length == max_length or all(bool(group.done.all()) for group in groups):
            break
        logits = append_chosen(rows, _join([group.running for group in groups]), row_numbers)
    texts = _join([group.hypotheses for group in groups])
    best = texts.take(texts.scores.argsort(dim=1, descending=True))
    return gather_output(best, prompt_length, options, scores, raw)


def _start(ids: Tensor, options: GenerationOptions) -> tuple[list[_Group], Tensor]:
    """The groups, and the row numbers (B, N)."""
    beams, row_numbers = start_beams(ids, options.num_beams)
    groups = []
    for index in torch.arange(options.num_beams, device=ids.device).chunk(options.num_beam_groups):
        running = beams.take(index.expand(len(ids), -1))
        running = running.with_scores(only_first(running.scores))
        none = running.with_scores(torch.full_like(running.scores, -torch.inf, dtype=torch.float64))
        groups.append(_Group(running, row_numbers[:, index], none, torch.zeros_like(ids[:, 0], dtype=torch.bool)))
    return groups, row_numbers


def _with_diversity(
    processors: Sequence[LogitsProcessor], taken: Tensor, options: GenerationOptions
) -> Sequence[LogitsProcessor]:
    """The processors with the diversity penalty where transformers had it: after sequence_bias, before the others."""
    if taken.shape[1] == 0 or not options.diversity_penalty:
        return processors
    place = 0 if options.sequence_bias is None else 1
    diversity = partial(_penalise_taken, taken=taken, penalty=options.diversity_penalty)
    return [*processors[:place], diversity, *processors[place:]]


def _penalise_taken(ids: Tensor, scores: Tensor, *, taken: Tensor, penalty: float) -> Tensor:
    """Scores (B*n, V), each token's lower by `penalty` for each time that it is in taken (B, ·)."""
    times = scores.new_zeros(len(taken), scores.shape[-1])
    times.scatter_add_(1, taken, torch.ones_like(taken, dtype=scores.dtype))
    return scores - penalty * times.repeat_interleave(len(scores) // len(taken), 0)


def _advance(group: _Group, log_probs: Tensor, request: DecodingRequest) -> None:
    """Extend a group by a token; log_probs (B*n, V) are after the processors. Prompts that are done get padding."""
    options, prompt_length, max_length = request.options, request.ids.shape[1], request.max_length
    n = group.row_numbers.shape[1]
    candidates = continue_beams(group.running, log_probs, group.row_numbers, options, None)
    length = candidates.ids.shape[-1]
    ended = candidates_end(candidates, request.finished, at_limit=False)
    new = ended & (torch.arange(ended.shape[1], device=ended.device) < n) & ~group.done[:, None]
    group.hypotheses = _add(group.hypotheses.padded(options.pad_id), _with_one_end(candidates, options), new, options)
    still = candidates.take(ended.long().argsort(dim=1, stable=True)[:, :n])  # the best that go on
    group.running = _pad_done(group, still, options)
    enough = (~ended).sum(1) >= n  # fails only where stop_strings or max_time end texts
    best = candidates.scores.amax(1).double()
    group.done = group.done | ~enough | _cannot_improve(group, best, length, prompt_length, max_length, options)
    if length == max_length:
        open_beams = (~group.done)[:, None].expand(-1, n)
        group.hypotheses = _add(group.hypotheses, group.running, open_beams, options)


def _add(hypotheses: Beams, texts: Beams, eligible: Tensor, options: GenerationOptions) -> Beams:
    """The n best of the hypotheses (B, n) and those of texts (B, M) that are eligible (B, M) bool."""
    n = hypotheses.scores.shape[1]
    scores = texts.scores.double() / texts.parents.shape[-1] ** options.length_penalty
    both = hypotheses.join(texts.with_scores(scores.masked_fill(~eligible, -torch.inf)))
    best = both.scores.topk(n)
    return both.take(best.indices)


def _with_one_end(candidates: Beams, options: GenerationOptions) -> Beams:
    """Of several ends of text, hypotheses are written with the first, as transformers 4 did."""
    if len(options.eos_ids) < 2:
        return candidates
    last = candidates.ids[..., -1:]
    is_end = torch.isin(last, torch.tensor(options.eos_ids, device=last.device))
    last = last.masked_fill(is_end, options.eos_ids[0])
    return Beams(torch.cat([candidates.ids[..., :-1], last], -1), candidates.parents, candidates.scores)


def _pad_done(group: _Group, still: Beams, options: GenerationOptions) -> Beams:
    """The running beams of the next step: `still` (B, n), but padding and score 0 for prompts that are done."""
    if not bool(group.done.any()):
        return still
    done = group.done[:, None]
    idle = group.running.padded(options.pad_id)
    parents = torch.cat([group.running.parents, group.row_numbers[..., None]], -1)
    return Beams(
        idle.ids.where(done[..., None], still.ids),
        parents.where(done[..., None], still.parents),
        still.scores.masked_fill(done, 0.0),
    )


def _cannot_improve(
    group: _Group, best: Tensor, length: int, prompt_length: int, max_length: int, options: GenerationOptions
) -> Tensor:
    """Which prompts (B,) have n hypotheses that no continuation of the best candidate's score (B,) could beat."""
    worst = group.hypotheses.scores.amin(1)
    full = worst > -torch.inf
    if options.early_stopping is True:
        return full
    long = options.early_stopping == "never" and options.length_penalty > 0
    steps = (max_length if long else length) - prompt_length
    return full & (worst >= best / steps**options.length_penalty)


def _join(parts: list[Beams]) -> Beams:
    joined = parts[0]
    for part in parts[1:]:
        joined = joined.join(part)
    return joined
