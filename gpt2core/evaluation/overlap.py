"""Measures of a text without a model: how varied it is, and its longest overlap with the training text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Tokens of the corpus searched at once; the first chunk is small because an early match speeds up the rest.
FIRST_CHUNK = 1 << 16
LARGEST_CHUNK = 1 << 22
# Positions compared at once: a text that repeats one token matches each of its positions with each in the corpus.
PAIRS_AT_ONCE = 1 << 20


class Corpus(Protocol):
    """Consecutive tokens, read by position."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Overlap:
    """A run of tokens that a text shares with a corpus: `length` tokens from these two positions on."""

    length: int
    start: int
    corpus_start: int


def distinct_n(token_ids: Sequence[int], n: int) -> float | None:
    """Distinct n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055); None for a text shorter than n."""
    count = len(token_ids) - n + 1
    if count < 1:
        return None
    return len({tuple(token_ids[start : start + n]) for start in range(count)}) / count


def longest_overlap(token_ids: Sequence[int], corpus: Corpus) -> Overlap:
    """The longest run of tokens, word for word, that the text shares with the corpus; one of them where several tie.

    Exact. The corpus is read once, in chunks that share enough tokens for a run across their border; memory is that of
    a chunk. Any run of more than the `best` tokens found so far holds the pair of tokens at a multiple of `best`, so
    only those pairs are looked up, and a pair that the text has as well is extended both ways.
    """
    text = np.asarray(token_ids, dtype=np.int64)
    best = Overlap(0, 0, 0)
    if not len(text) or not len(corpus):
        return best
    pairs = _PairIndex(text)
    start, size = 0, max(FIRST_CHUNK, 2 * len(text))
    while start < len(corpus) and best.length < len(text):
        stop = min(start + size, len(corpus))
        best = _longest_in_chunk(text, pairs, corpus.read(start, stop), start, best)
        if stop == len(corpus):
            break
        start, size = stop - len(text) + 1, max(min(2 * size, LARGEST_CHUNK), 2 * len(text))
    return best


class _PairIndex:
    """The positions of each pair of neighbouring tokens in a text."""

    def __init__(self, text: np.ndarray) -> None:
        self._number = np.zeros(max(1 << 16, int(text.max()) + 1), dtype=np.int64)  # of each token; 0: not in the text
        tokens = np.unique(text)
        self._number[tokens] = np.arange(1, len(tokens) + 1)
        self._base = len(tokens) + 1
        codes = self.codes(text[:-1], text[1:])
        self._order = np.argsort(codes, kind="stable")  # positions in the text, equal pairs together
        self._codes, self._first, self._count = np.unique(codes[self._order], return_index=True, return_counts=True)

    def knows(self, token_ids: np.ndarray) -> np.ndarray:
        """Which of the tokens occur in the text."""
        return self._number[token_ids] > 0

    def codes(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """A number for each pair of tokens of the text, the same for the same pair."""
        return self._number[left] * self._base + self._number[right]

    def find(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the pairs that the text has: their index, and the first and number of their places in `places`."""
        kept = np.flatnonzero(self.knows(left))
        kept = kept[self.knows(right[kept])]
        codes = self.codes(left[kept], right[kept])
        slot = np.minimum(np.searchsorted(self._codes, codes), max(0, len(self._codes) - 1))
        hit = self._codes[slot] == codes if len(self._codes) else np.zeros(len(codes), dtype=bool)
        return kept[hit], self._first[slot[hit]], self._count[slot[hit]]

    def places(self, index: np.ndarray) -> np.ndarray:
        return self._order[index]


def _longest_in_chunk(text: np.ndarray, pairs: _PairIndex, chunk: np.ndarray, offset: int, best: Overlap) -> Overlap:
    """`best`, or a longer run that lies within the chunk, whose first token is the corpus's number `offset`."""
    if best.length == 0:
        known = np.flatnonzero(pairs.knows(chunk))
        if not len(known):
            return best
        place = int(np.flatnonzero(text == chunk[known[0]])[0])
        best = Overlap(1, place, offset + int(known[0]))
    step = best.length
    anchors, first, count = pairs.find(chunk[:-1:step], chunk[1::step])
    ends = np.cumsum(count)
    begin = 0
    while begin < len(anchors):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")))
        repeats = count[begin:end]
        within = np.arange(int(repeats.sum())) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        places = pairs.places(np.repeat(first[begin:end], repeats) + within)
        best = _extend(text, chunk, places, np.repeat(anchors[begin:end] * step, repeats), offset, best)
        begin = end
    return best


def _extend(
    text: np.ndarray, chunk: np.ndarray, places: np.ndarray, positions: np.ndarray, offset: int, best: Overlap
) -> Overlap:
    """The longest run around the pairs that stand at `places` of the text and `positions` of the chunk, or `best`."""
    after = _run_length(text, chunk, places, positions, 1)
    before = _run_length(text, chunk, places - 1, positions - 1, -1)
    longest = int(np.argmax(after + before))
    length = int(after[longest] + before[longest])
    if length <= best.length:
        return best
    start, corpus_start = places[longest] - before[longest], positions[longest] - before[longest]
    return Overlap(length, int(start), offset + int(corpus_start))


def _run_length(
    text: np.ndarray, chunk: np.ndarray, places: np.ndarray, positions: np.ndarray, step: int
) -> np.ndarray:
    """How many tokens agree from places and positions on, forwards (step 1) or backwards (step -1)."""
    lengths = np.zeros(len(places), dtype=np.int64)
    active = np.arange(len(places))
    while len(active):
        at, pos = places[active] + step * lengths[active], positions[active] + step * lengths[active]
        inside = (at >= 0) & (at < len(text)) & (pos >= 0) & (pos < len(chunk))
        active, at, pos = active[inside], at[inside], pos[inside]
        active = active[text[at] == chunk[pos]]
        lengths[active] += 1
    return lengths
