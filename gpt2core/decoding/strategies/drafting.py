"""Self-speculation on a CPU: a 4-bit copy of the model drafts, the model itself checks (Zhang et al. 2023).

Where the text repeats itself, what followed the last time is guessed instead, which costs nothing.

The texts are those of `sampling.sample`, sooner: the draft reads an eighth of the fp32 weights a token. It shares the
keys and values of the model, and where tokens are drawn, it draws with a copy of the generator, so that it guesses what
the same dice will say.

Shapes: L tokens so far, K guessed tokens, V vocab_size. The batch is always 1.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt2core.decoding.logits.processors import apply, own_functions
from gpt2core.decoding.options import GenerationOptions, LogitsProcessor
from gpt2core.decoding.output import Decoded
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.rows.cached import CachedRows, Rows
from gpt2core.decoding.strategies.sampling import Generators, Streamer, probabilities_of
from gpt2core.decoding.strategies.speculation import speculate
from gpt2core.decoding.topk import place_of_largest

# Making the draft takes about the time that 50 new tokens save (124M, 2 cores).
MIN_NEW_TOKENS = 128
# Smaller models are held by the processor's caches: there a step is not the time of reading weights.
MIN_PARAMETERS = 50_000_000
LONGEST_GUESS = 8
# What a guess costs, in plain steps of the model: a checking pass, each token in it, and each that the draft makes
# (124M, 2 cores).
PASS, CHECK = 1.1, 0.055
DRAFT = {"fp32": 0.36, "bf16": 0.6}
# How much of what was seen is kept at each pass: guesses that were wrong too often to go on are tried again later.
KEPT = 0.9
# Tokens that stood together before, the longest first, and what is believed of what followed them: (right, wrong).
NGRAMS = {3: (4.0, 1.0), 1: (1.0, 1.0)}


def may_draft(rows: Rows, ids: Tensor, options: GenerationOptions, max_length: int) -> bool:
    """Whether a draft can pay for continuing ids (B, L): for one long text of a large model on a CPU."""
    if not isinstance(rows, CachedRows) or len(ids) * options.num_return_sequences > 1 or ids.device.type != "cpu":
        return False
    if own_functions(options.logits_processor):
        return False  # a user's function may count its calls
    long = max_length - ids.shape[1] >= MIN_NEW_TOKENS
    return long and max_length <= rows.block_size + 1 and rows.model.config.num_parameters >= MIN_PARAMETERS


def sample_with_draft(
    rows: Rows,
    ids: Tensor,
    mask: Tensor | None,
    options: GenerationOptions,
    processors: list[LogitsProcessor],
    *,
    generator: Generators,
    finished: Callable[[Tensor], Tensor],
    max_length: int,
    streamer: Streamer | None = None,
) -> tuple[Decoded, Tensor | None]:
    """Continue one prompt ids (1, L) as `sampling.sample` does."""
    assert isinstance(rows, CachedRows)
    guesser = _Draft(rows, options, processors, generator)
    common: dict[str, Any] = {"finished": finished, "max_length": max_length, "streamer": streamer}
    try:
        return speculate(rows, ids, mask, options, processors, guesser, **common)
    finally:
        guesser.dice.give_back()


class _Draft:
    """Guesses what was said before, or what the 4-bit copy of the model says where it has one."""

    def __init__(
        self, rows: CachedRows, options: GenerationOptions, processors: list[LogitsProcessor], generator: Generators
    ) -> None:
        self._rows, self._options, self._processors = rows, options, processors
        self.dice = Dice(generator[0] if isinstance(generator, list) else generator)
        self._drafted = Record(right=8.0, wrong=1.0)
        self._repeated = {size: Record(*belief) for size, belief in NGRAMS.items()}
        self._repeats = Repeats()
        self._guessed: tuple[Record, int] | None = None

    def guess(self, ids: Tensor, vocab_size: int, room: int) -> list[int]:
        model, self._guessed = self._rows.model, None
        if self._rows.length == ids.shape[1]:
            for token in ids[0].tolist():
                self._repeats.add(token)
            return []  # the first token comes from reading the prompt and is not kept waiting
        if not isinstance(model, PackedGPT) or not model.reads_many_fast:
            return []
        most = min(room, LONGEST_GUESS)
        size, repeated = self._repeats.guess(most)
        by_repeating, worth = best_count(self._repeated[size].chance if size else 0.0, CHECK, len(repeated))
        cost = CHECK + DRAFT.get(model.weights, 0.0)
        by_drafting, count = best_count(self._drafted.chance, cost, most if model.can_draft else 0)
        if by_repeating > by_drafting:
            self._guessed = self._repeated[size], worth
            return repeated[:worth]
        if count == 0:
            return []
        guess = self._draft(model, ids, count)
        self._guessed = self._drafted, len(guess)
        return guess

    def _draft(self, model: PackedGPT, ids: Tensor, count: int) -> list[int]:
        """Up to `count` tokens after ids (1, L), by the copy."""
        guess: list[int] = []
        with self._rows.read_by(model.draft()):
            while len(guess) < count:
                scores = apply(self._processors, ids, self._rows.append(ids[:, -1:]))
                if not bool(scores.amax().isfinite()):
                    break
                token = self._pick(scores, len(guess))
                guess.append(int(token))
                if guess[-1] in self._options.eos_ids:
                    break
                ids = torch.cat([ids, token[None]], dim=1)
        return guess

    def choose(self, scores: Tensor, guess: list[int]) -> Tensor:
        if not self._options.do_sample:
            return place_of_largest(scores)
        return torch.cat([self._pick(row[None], place) for place, row in enumerate(scores)])

    def _pick(self, scores: Tensor, place: int) -> Tensor:
        """The token (1,) `place` steps ahead, of scores (1, V)."""
        return self.dice.throw(scores, place) if self._options.do_sample else place_of_largest(scores)

    def settle(self, token: int) -> None:
        self.dice.settle()
        self._repeats.add(token)

    def learn(self, matching: int) -> None:
        for record in (self._drafted, *self._repeated.values()):
            record.forget()
        if self._guessed is not None:
            record, guessed = self._guessed
            record.note(matching, guessed)


class Record:
    """How often one kind of guess is right; begins, and ends where nothing is seen, with what is believed at first."""

    def __init__(self, right: float, wrong: float) -> None:
        self._right, self._wrong = self._first = right, wrong

    @property
    def chance(self) -> float:
        """That a token is right, if those before it are."""
        return self._right / (self._right + self._wrong)

    def forget(self) -> None:
        right, wrong = self._first
        self._right, self._wrong = right + KEPT * (self._right - right), wrong + KEPT * (self._wrong - wrong)

    def note(self, matching: int, guessed: int) -> None:
        self._right += matching
        self._wrong += matching < guessed


class Repeats:
    """What followed the last tokens of a text where they stood together before.

    Of the sizes in NGRAMS the largest that stood there counts, and of its places the last.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # where the token after an n-gram stands

    def add(self, token: int) -> None:
        for ngram in self._ngrams():
            self._next[ngram] = len(self._tokens)
        self._tokens.append(token)

    def guess(self, count: int) -> tuple[int, list[int]]:
        """How many tokens stood together before, and `count` tokens after them; (0, []) where there is no such place.

        The guess goes on in a circle where the text does.
        """
        for ngram in self._ngrams():
            if (start := self._next.get(ngram)) is not None:
                period = len(self._tokens) - start
                return len(ngram), [self._tokens[start + place % period] for place in range(count)]
        return 0, []

    def _ngrams(self) -> list[tuple[int, ...]]:
        """The last n tokens for each n, the longest first."""
        return [tuple(self._tokens[-size:]) for size in NGRAMS if size <= len(self._tokens)]


def best_count(chance: float, cost: float, most: int) -> tuple[float, int]:
    """Tokens to guess, each right with a `chance` if those before it are, at a `cost`: the speed, and how many.

    The count up to `most` that promises the most tokens a plain step of the model (Leviathan et al. 2023, section
    3.4); 0 where that is a plain step.
    """

    def speed(count: int) -> float:
        return sum(chance**place for place in range(count + 1)) / (PASS + cost * count if count else 1)

    return max((speed(count), count) for count in range(most + 1))


class Dice:
    """`torch.multinomial`'s draws, some steps ahead, and again for other scores: the same throw of the same dice.

    It draws the token of the largest probability / noise (aten/src/ATen/native/Distributions.cpp), and the noise of a
    step does not depend on the probabilities. From a settled throw to the next look ahead the generator is where it
    would be without any; if someone else draws from it then, what was thrown ahead is thrown anew.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator if generator is not None else torch.default_generator
        self._ahead: deque[tuple[Tensor, Tensor]] = deque()  # the state before a throw, and its noise (1, V)
        self._parked: Tensor | None = None  # the state after all throws, while the generator is before them

    def throw(self, scores: Tensor, place: int) -> Tensor:
        """The token (1,) drawn `place` steps after the last settled one, of scores (1, V)."""
        if self._parked is not None:
            if self._untouched():
                self._generator.set_state(self._parked)
            else:
                self._ahead.clear()
            self._parked = None
        while place >= len(self._ahead):
            before = self._generator.get_state()
            self._ahead.append((before, torch.empty_like(scores).exponential_(generator=self._generator)))
        return (probabilities_of(scores) / self._ahead[place][1]).argmax(-1)

    def settle(self) -> None:
        """The next throw is done with: leave the generator behind it, before those ahead."""
        if self._parked is None:
            self._parked = self._generator.get_state()
        elif not self._untouched():
            self._ahead.clear()
        if self._ahead:
            self._ahead.popleft()
            self._generator.set_state(self._ahead[0][0] if self._ahead else self._parked)

    def _untouched(self) -> bool:
        """Whether the parked generator is still before the throws ahead."""
        return bool(self._ahead) and torch.equal(self._generator.get_state(), self._ahead[0][0])

    def give_back(self) -> None:
        """Leave the generator as if nothing had been thrown ahead."""
        if self._ahead and self._parked is None:
            self._generator.set_state(self._ahead[0][0])
        self._ahead.clear()
