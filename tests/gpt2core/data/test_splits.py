import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2core.data.splits import choose_split, share_error, split_documents, split_tokens
from gpt2core.errors import UserError

EIGHTY = {"train": 0.8, "val": 0.1, "test": 0.1}
PLAYS = np.array([56_000, 33_000, 43_000, 48_000, 50_000, 35_000, 31_000, 28_000])


def test_eight_plays_give_six_one_one() -> None:
    split = choose_split(PLAYS, EIGHTY, "auto")
    assert split.by == "documents"
    assert np.bincount(split.run_owners).tolist() == [6, 1, 1]
    assert share_error(PLAYS, split.run_owners, EIGHTY) < 0.015


@given(
    lengths=st.lists(st.integers(2, 10_000), min_size=3, max_size=60),
    weights=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
)
def test_every_split_with_a_share_gets_a_document_and_no_other_does(
    lengths: list[int], weights: tuple[int, ...]
) -> None:
    shares = {name: weight / sum(weights) for name, weight in zip(("train", "val", "test"), weights, strict=True)}
    counts = np.bincount(split_documents(np.array(lengths), shares), minlength=3)
    assert [bool(count) for count in counts] == [weight > 0 for weight in weights]


def test_many_documents_meet_their_shares_all_along_the_corpus() -> None:
    lengths = np.random.default_rng(0).integers(50, 500, 5000)
    owners = split_documents(lengths, EIGHTY)
    assert share_error(lengths, owners, EIGHTY) < 0.001
    assert share_error(lengths[:1000], owners[:1000], EIGHTY) < 0.005


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        ((0.7, 0.2, 0.1), (700, 200, 100)),
        ((1.0, 0.0, 0.0), (1000, 0, 0)),
        ((0.9, 0.1, 0.0), (900, 100, 0)),
        ((0.5, 0.0, 0.5), (500, 0, 500)),
    ],
)
def test_tokens_are_split_by_their_shares(shares: tuple[float, ...], sizes: tuple[int, ...]) -> None:
    names = ("train", "val", "test")
    assert tuple(split_tokens(1000, dict(zip(names, shares, strict=True))).values()) == sizes


@given(total=st.integers(100, 10**12))
def test_the_token_split_of_any_total_adds_up(total: int) -> None:
    assert sum(split_tokens(total, EIGHTY).values()) == total


def test_auto_says_why_it_chose_tokens() -> None:
    one = choose_split(np.array([1000]), EIGHTY, "auto")
    assert (one.by, one.reason) == ("tokens", "1 document cannot fill train, val, test")
    uneven = choose_split(np.array([1000, 10, 10]), EIGHTY, "auto")
    assert (uneven.by, uneven.reason) == ("tokens", "whole documents (3 documents) would miss a share by 18%")


def test_too_few_documents_to_split_by_are_an_error() -> None:
    with pytest.raises(UserError, match="train, val, test need 3 documents and the corpus has 2"):
        choose_split(np.array([50, 50]), EIGHTY, "documents")


@pytest.mark.parametrize("split_by", ["auto", "tokens"])
def test_a_split_too_short_to_predict_a_token_is_an_error(split_by: str) -> None:
    with pytest.raises(UserError, match=r"the val share \(0\.1\) of 9 tokens is 1, too short"):
        choose_split(np.array([9]), EIGHTY, split_by)


def test_documents_of_one_token_make_no_split_that_nothing_can_be_predicted_in() -> None:
    lengths = np.array([8, 1, 1])
    with pytest.raises(UserError, match="too short for a split"):
        choose_split(lengths, EIGHTY, "auto")
    # By tokens there is room: 16, 2 and 2.
    assert choose_split(np.array([16, 1, 1, 1, 1]), EIGHTY, "auto").document_lengths["val"].sum() == 2


def test_shares_that_make_up_one_but_for_rounding_split_very_many_tokens() -> None:
    total = 1_983_867_934_442
    sizes = split_tokens(total, {"train": 0.9, "val": 0.1 + 1e-9, "test": 0.0})
    assert sizes["train"] + sizes["val"] == total
    assert sizes["test"] == 0
    with pytest.raises(UserError, match=r"the val share \(1e-09\) of 1983867934442 tokens is 0, too short"):
        split_tokens(total, {"train": 1.0, "val": 1e-9, "test": 0.0})
