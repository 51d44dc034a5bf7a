"""Self-speculation on a CPU: a 4-bit copy of the model drafts, the model itself checks (Zhang et al. 2023).

Where the text repeats itself, the tokens that followed the last time are the draft instead, which costs nothing.

The texts are those of `sampling.sample`, only faster: the 4-bit copy reads an eighth of the fp32 weights a token. It
shares the model's keys and values. Where tokens are drawn, `LookaheadSampler` draws ahead from the same generator, so
that the draft holds the tokens that the model's own draws will give if the two distributions agree.

Shapes: L tokens so far, K draft tokens, V vocab_size. The batch is always 1.
"""

from collections import deque

import torch
from torch import Tensor

from gpt2core.decoding.logits.processors import apply, user_functions
from gpt2core.decoding.logits.topk import fast_argmax
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.rows.cached import CachedRows, Rows
from gpt2core.decoding.strategies.choice import probabilities_of
from gpt2core.decoding.strategies.speculation import speculate

# Making the 4-bit copy takes about the time that 50 new tokens save (124M, 2 cores).
MIN_NEW_TOKENS = 128
# Smaller models fit into the processor's caches: there a step's time is not that of reading weights.
MIN_PARAMETERS = 50_000_000
MAX_DRAFT_TOKENS = 8
# Costs in plain steps of the model: a checking pass, each token in it, and each that the 4-bit copy makes
# (124M, 2 cores).
PASS_COST, CHECK_COST = 1.1, 0.055
DRAFT_COST = {"fp32": 0.36, "bf16": 0.6}
# Weight of earlier counts at each pass: a kind of draft that was rejected too often is tried again later.
DECAY = 0.9
# n-gram sizes, the longest first, with the prior counts (accepted, rejected) of the tokens that followed them.
NGRAM_PRIORS = {3: (4.0, 1.0), 1: (1.0, 1.0)}
DRAFT_PRIOR = (8.0, 1.0)


def is_worth_drafting(rows: Rows, request: DecodingRequest) -> bool:
    """Whether drafting can be faster: for one long text of a large model on a CPU."""
    ids, options, max_length = request.ids, request.options, request.max_length
    if not isinstance(rows, CachedRows) or len(ids) * options.num_return_sequences > 1 or ids.device.type != "cpu":
        return False
    if user_functions(options.logits_processor):
        return False  # a user's function may count its calls
    long = max_length - ids.shape[1] >= MIN_NEW_TOKENS
    return long and max_length <= rows.block_size + 1 and rows.model.config.num_parameters >= MIN_PARAMETERS


def sample_with_draft(rows: Rows, request: DecodingRequest) -> Decoded:
    """Continue one prompt as `sampling.sample` does."""
    assert isinstance(rows, CachedRows)
    drafter = _Drafter(rows, request)
    try:
        return speculate(rows, request, drafter)
    finally:
        drafter.sampler.restore()


class _Drafter:
    """Drafts what followed an earlier n-gram, or what the 4-bit copy of the model gives, whichever promises more."""

    def __init__(self, rows: CachedRows, request: DecodingRequest) -> None:
        generator = request.generator
        self._rows, self._options, self._processors = rows, request.options, request.processors
        self.sampler = LookaheadSampler(generator[0] if isinstance(generator, list) else generator)
        self._draft_rate = AcceptanceRate(*DRAFT_PRIOR)
        self._ngram_rates = {size: AcceptanceRate(*prior) for size, prior in NGRAM_PRIORS.items()}
        self._ngrams = RepeatedNgrams()
        self._proposed: tuple[AcceptanceRate, int] | None = None

    def propose(self, ids: Tensor, vocab_size: int, room: int) -> list[int]:
        model, self._proposed = self._rows.model, None
        if self._rows.length == ids.shape[1]:
            for token in ids[0].tolist():
                self._ngrams.append(token)
            return []  # the first token comes from reading the prompt and is not delayed
        if not isinstance(model, PackedGPT) or not model.checks_drafts_fast:
            return []
        most = min(room, MAX_DRAFT_TOKENS)
        size, repeated = self._ngrams.propose(most)
        ngram_rate = self._ngram_rates[size].value if size else 0.0
        ngram_speed, ngram_length = best_draft_length(ngram_rate, CHECK_COST, len(repeated))
        cost = CHECK_COST + DRAFT_COST.get(model.weights, 0.0)
        draft_speed, draft_length = best_draft_length(self._draft_rate.value, cost, most if model.can_draft else 0)
        if ngram_speed > draft_speed:
            self._proposed = self._ngram_rates[size], ngram_length
            return repeated[:ngram_length]
        if draft_length == 0:
            return []
        draft = self._draft(model, ids, draft_length)
        self._proposed = self._draft_rate, len(draft)
        return draft

    def _draft(self, model: PackedGPT, ids: Tensor, count: int) -> list[int]:
        """Up to `count` tokens after ids (1, L), by the 4-bit copy."""
        draft: list[int] = []
        with self._rows.using(model.draft()):
            while len(draft) < count:
                scores = apply(self._processors, ids, self._rows.append(ids[:, -1:]))
                if not bool(scores.amax().isfinite()):
                    break
                token = self._choose_one(scores, len(draft))
                draft.append(int(token))
                if draft[-1] in self._options.eos_ids:
                    break
                ids = torch.cat([ids, token[None]], dim=1)
        return draft

    def choose(self, scores: Tensor, draft: list[int]) -> Tensor:
        if not self._options.do_sample:
            return fast_argmax(scores)
        return torch.cat([self._choose_one(row[None], step) for step, row in enumerate(scores)])

    def _choose_one(self, scores: Tensor, step: int) -> Tensor:
        """The token (1,) `step` steps ahead, of scores (1, V)."""
        return self.sampler.draw(scores, step) if self._options.do_sample else fast_argmax(scores)

    def append(self, token: int) -> None:
        self.sampler.advance()
        self._ngrams.append(token)

    def record_acceptance(self, accepted: int) -> None:
        for rate in (self._draft_rate, *self._ngram_rates.values()):
            rate.decay()
        if self._proposed is not None:
            rate, proposed = self._proposed
            rate.update(accepted, proposed)


class AcceptanceRate:
    """Running estimate of how often a draft token is accepted; without observations it returns to the prior counts."""

    def __init__(self, accepted: float, rejected: float) -> None:
        self._accepted, self._rejected = self._prior = accepted, rejected

    @property
    def value(self) -> float:
        """Probability that a token is accepted if those before it are."""
        return self._accepted / (self._accepted + self._rejected)

    def decay(self) -> None:
        accepted, rejected = self._prior
        self._accepted = accepted + DECAY * (self._accepted - accepted)
        self._rejected = rejected + DECAY * (self._rejected - rejected)

    def update(self, accepted: int, proposed: int) -> None:
        """Tokens after the first rejected one count as neither."""
        self._accepted += accepted
        self._rejected += accepted < proposed


class RepeatedNgrams:
    """What followed the last occurrence of the text's current n-gram, for the sizes in NGRAM_PRIORS, longest first."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # position of the token after the n-gram's last occurrence

    def append(self, token: int) -> None:
        for ngram in self._current():
            self._next[ngram] = len(self._tokens)
        self._tokens.append(token)

    def propose(self, count: int) -> tuple[int, list[int]]:
        """The size of the longest n-gram that occurred before, and `count` tokens after it; (0, []) where none did.

        Past the end of the text the proposal continues periodically.
        """
        for ngram in self._current():
            if (start := self._next.get(ngram)) is not None:
                period = len(self._tokens) - start
                return len(ngram), [self._tokens[start + offset % period] for offset in range(count)]
        return 0, []

    def _current(self) -> list[tuple[int, ...]]:
        """The n-grams that end the text, the longest first."""
        return [tuple(self._tokens[-size:]) for size in NGRAM_PRIORS if size <= len(self._tokens)]


def best_draft_length(acceptance: float, cost: float, most: int) -> tuple[float, int]:
    """Expected tokens per plain step of the model, and the draft length up to `most` that gives it.

    `acceptance` is the probability that a draft token is accepted if those before it are, `cost` that of a draft token
    in plain steps (Leviathan et al. 2023, section 3.4). Length 0 is a plain step.
    """

    def speed(length: int) -> float:
        return sum(acceptance**i for i in range(length + 1)) / (PASS_COST + cost * length if length else 1)

    return max((speed(length), length) for length in range(most + 1))


class LookaheadSampler:
    """`torch.multinomial`'s draws for several steps ahead, repeatable with other scores for the same step.

    `torch.multinomial` returns argmax(probability / noise) (aten/src/ATen/native/Distributions.cpp), and a step's noise
    does not depend on the probabilities: drawing ahead and again later uses the same noise. Between `advance` and the
    next draw the generator is in the state that it would have without any lookahead; where other code draws from it
    then, the noise ahead is discarded and drawn again.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator if generator is not None else torch.default_generator
        self._ahead: deque[tuple[Tensor, Tensor]] = deque()  # generator state before a step, and its noise (1, V)
        self._state_after: Tensor | None = None  # after all noise ahead, while the generator is set back before it

    def draw(self, scores: Tensor, step: int) -> Tensor:
        """The token (1,) drawn `step` steps after the last advanced one, of scores (1, V)."""
        if self._state_after is not None:
            if self._is_unused():
                self._generator.set_state(self._state_after)
            else:
                self._ahead.clear()
            self._state_after = None
        while step >= len(self._ahead):
            before = self._generator.get_state()
            self._ahead.append((before, torch.empty_like(scores).exponential_(generator=self._generator)))
        return (probabilities_of(scores) / self._ahead[step][1]).argmax(-1)

    def advance(self) -> None:
        """Drop the next step's noise: leave the generator after it and before the noise ahead."""
        if self._state_after is None:
            self._state_after = self._generator.get_state()
        elif not self._is_unused():
            self._ahead.clear()
        if self._ahead:
            self._ahead.popleft()
            self._generator.set_state(self._ahead[0][0] if self._ahead else self._state_after)

    def _is_unused(self) -> bool:
        """Whether no other code has drawn from the generator since it was set back."""
        return bool(self._ahead) and torch.equal(self._generator.get_state(), self._ahead[0][0])

    def restore(self) -> None:
        """Leave the generator as if nothing had been drawn ahead."""
        if self._ahead and self._state_after is None:
            self._generator.set_state(self._ahead[0][0])
        self._ahead.clear()
