"""Rows stop at stop strings exactly where transformers' StopStringCriteria stops them."""

import time
from functools import lru_cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase, StopStringCriteria

from gpt2core.decoding.stopping import StopStrings
from gpt2core.tokenizer import Tokenizer

OURS = Tokenizer()


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> PreTrainedTokenizerBase:
    directory = tmp_path_factory.mktemp("tokenizer")
    OURS.save(directory)
    return AutoTokenizer.from_pretrained(directory)


STOPS = [
    ("stop",),
    ("\n\n",),
    (".",),
    ("?", "! "),
    ("ab", "abab", "ba"),
    ("é", "né"),
    ("日本",),
    ("🙂",),
    ("the end", " THE"),
    ("<|endoftext|>",),
    ("text|>A", "aaa"),
    (" \n ",),
]
# Pieces of what the stop strings hold, so that they begin and end inside tokens and span them.
PIECES = ["st", "op", "stop", "s", "to", "pped", "las", "topper", "opera", "a", "b", "ab", "ba", "aba", "aa", "the"]
PIECES += [" end", " the", "T", "HE", "\n", "\n\n", " ", ".", "...", "?!", "! ", "é", "n", "日本", "日", "🙂", "🙃"]
PIECES += ["<|endoftext|>", "A", "text|>", "x", "<|", "endo"]


@lru_cache
def tokens_of_pieces() -> list[int]:
    """Every token that spells a piece, and each byte of it alone, so that characters are cut too."""
    ids = {token_id for piece in PIECES for token_id in OURS.encode(piece)}
    single = {OURS.token_bytes([token_id]): token_id for token_id in range(256)}
    ids |= {single[bytes([byte])] for piece in PIECES for byte in piece.encode()}
    return sorted(ids)


@pytest.mark.parametrize("stops", STOPS, ids=map(repr, STOPS))
def test_rows_stop_where_transformers_stops_them(reference, stops) -> None:
    theirs = StopStringCriteria(reference, list(stops))
    ours = StopStrings(stops, OURS)
    stopped = []
    row = st.lists(st.sampled_from(tokens_of_pieces()), min_size=14, max_size=14)
    spelled = st.lists(st.sampled_from([*PIECES, *stops]), min_size=14, max_size=14).map(
        lambda pieces: OURS.encode("".join(pieces))[:14]
    )

    @settings(max_examples=150, deadline=None)
    @given(st.lists(row | spelled, min_size=1, max_size=4), st.integers(0, 13))
    @example([OURS.encode(stops[0])], 0)  # else chance alone decides whether a row stops at all
    def check(rows, cut) -> None:
        shortest = min(map(len, rows))
        ids = torch.tensor([row[:shortest] for row in rows])
        for length in {shortest, max(1, shortest - cut)}:
            expected = theirs(ids[:, :length], None)
            assert torch.equal(ours(ids[:, :length]), expected)
            stopped.extend(expected.tolist())

    check()
    assert {True, False} == set(stopped)


@pytest.mark.parametrize(
    ("pieces", "stops"),
    [
        (["end"], True),
        (["en", "d"], True),
        (["en", "ded"], True),
        (["x", "ends"], True),
        (["friend", "ly"], False),
        (["en", "ded", "."], False),
        (["d"], False),
    ],
)
def test_a_stop_string_counts_where_it_ends_in_the_last_token(pieces, stops) -> None:
    vocabulary = {OURS.token_bytes([token_id]): token_id for token_id in range(OURS.n_vocab)}
    ids = torch.tensor([[vocabulary[piece.encode()] for piece in pieces]])
    assert StopStrings("end", OURS)(ids).tolist() == [stops]


def test_it_may_begin_in_the_prompt_but_not_end_there() -> None:
    ids = torch.tensor([OURS.encode("The en") + OURS.encode("d")])
    stop = StopStrings("end", OURS)
    assert stop(ids, prompt_length=ids.shape[1] - 1).tolist() == [True]
    assert stop(ids, prompt_length=ids.shape[1]).tolist() == [False]


def test_ids_beyond_the_vocabulary_stand_between_texts(reference) -> None:
    a, b = OURS.encode("a")[0], OURS.encode("b")[0]
    ids = torch.tensor([[a, 50300, b], [50300, a, b], [a, b, 50300]])
    assert StopStrings("ab", OURS)(ids).tolist() == [False, True, False]
    assert StopStringCriteria(reference, ["ab"])(ids, None).tolist() == [False, True, False]


def test_a_step_costs_the_same_after_a_long_text() -> None:
    stop = StopStrings(["nowhere to be found", "\n\n\n"], OURS)
    short = torch.randint(50257, (16, 32), generator=torch.Generator().manual_seed(0))
    long = short.repeat(1, 2000)

    def seconds(ids: torch.Tensor) -> float:
        stop(ids)
        best = float("inf")
        for _ in range(20):
            started = time.perf_counter()
            stop(ids)
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(long) < 10 * seconds(short)  # 2,000 times the tokens
