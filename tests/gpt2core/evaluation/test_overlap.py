"""Variety and overlap, against what a few plain lines find."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2core.evaluation import overlap as text_measures
from gpt2core.evaluation.overlap import Overlap, distinct_n, longest_overlap


class Corpus:
    def __init__(self, token_ids: list[int]) -> None:
        self.tokens = np.array(token_ids, dtype=np.uint16)
        self.largest_read = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= len(self)
        self.largest_read = max(self.largest_read, stop - start)
        return self.tokens[start:stop]


def naive_length(text: list[int], corpus: list[int]) -> int:
    """Longest common run by the textbook's table."""
    longest, above = 0, [0] * (len(corpus) + 1)
    for token in text:
        row = [0] * (len(corpus) + 1)
        for i, other in enumerate(corpus):
            row[i + 1] = above[i] + 1 if token == other else 0
        longest, above = max(longest, *row), row
    return longest


def assert_longest(text: list[int], corpus: list[int]) -> None:
    found = longest_overlap(text, Corpus(corpus))
    assert found.length == naive_length(text, corpus)
    assert (
        text[found.start : found.start + found.length]
        == (corpus[found.corpus_start : found.corpus_start + found.length])
    )


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=60))
def test_the_longest_overlap_is_the_longest(text: list[int], corpus: list[int]) -> None:
    assert_longest(text, corpus)


@given(st.lists(st.integers(0, 2), max_size=10), st.lists(st.integers(0, 2), max_size=90), st.integers(1, 30))
def test_runs_across_the_borders_of_chunks_are_found(text: list[int], corpus: list[int], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_measures, "FIRST_CHUNK", chunk)
        patch.setattr(text_measures, "LARGEST_CHUNK", 2 * chunk)
        patch.setattr(text_measures, "PAIRS_AT_ONCE", 5)
        assert_longest(text, corpus)


def test_a_copied_passage_is_found_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_measures, "LARGEST_CHUNK", 1 << 16)
    random = np.random.default_rng(0)
    tokens = (random.zipf(1.3, 300_000) % 50_000).astype(np.uint16)
    corpus = Corpus(tokens.tolist())
    text = [50_001, *tokens[200_000:200_040].tolist(), 50_001]
    assert longest_overlap(text, corpus) == Overlap(40, 1, 200_000)
    assert corpus.largest_read == 1 << 16  # memory is that of a chunk, not of the corpus


def test_nothing_in_common_is_no_overlap() -> None:
    assert longest_overlap([1, 2], Corpus([3, 4])).length == 0
    assert longest_overlap([], Corpus([3])).length == 0
    assert longest_overlap([3], Corpus([])).length == 0


def test_distinct_n_is_the_share_of_different_ngrams() -> None:
    ids = [1, 2, 1, 2, 3]
    assert [distinct_n(ids, n) for n in (1, 2, 3)] == [3 / 5, 3 / 4, 3 / 3]
    assert distinct_n([7, 7, 7, 7], 2) == 1 / 3
    assert distinct_n([7], 2) is None
