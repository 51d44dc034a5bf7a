import math
from collections import Counter
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt2core.data import writer as token_writer
from gpt2core.data.batches import SAMPLERS, Batches, Epochs
from gpt2core.data.tokens import TokenSplit, open_split
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer

ALL_TRAIN = {"train": 1.0, "val": 0.0, "test": 0.0}
LENGTH = 1000


class Counted:
    """The token ids 0, 1, 2, … without files."""

    name = "train"

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= self._length
        return np.arange(start, stop)


def counting_split(directory: Path, monkeypatch: pytest.MonkeyPatch, length: int = LENGTH) -> TokenSplit:
    """A split whose token ids are 0, 1, 2, …, so that a batch shows its places."""
    monkeypatch.setattr(token_writer, "encode_fragments", lambda *_: iter([np.arange(length, dtype=np.uint16)]))
    token_writer.write_tokens(directory / "t", [], source="count", shares=ALL_TRAIN, shard_tokens=333)
    return open_split(directory / "t", "train")


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenSplit:
    return counting_split(tmp_path, monkeypatch)


def starts(batches: Batches, epoch: int = 0) -> list[int]:
    """Where the windows of an epoch start; it may begin and end within a batch."""
    size, count = batches.batch_size, batches.windows_per_epoch
    first, last = epoch * count, (epoch + 1) * count - 1
    rows = [row for index in range(first // size, last // size + 1) for row in batches.batch(index)[0]]
    return [int(row[0]) for row in rows[first % size :][:count]]


@settings(deadline=None, max_examples=200)
@given(
    length=st.integers(2, 400), batch_size=st.integers(1, 9), sequence_length=st.integers(1, 40),
    sampler=st.sampled_from(SAMPLERS), stride=st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_token_is_trained_in_every_epoch_about_equally_often(
    length: int, batch_size: int, sequence_length: int, sampler: str, stride: int, seed: int
) -> None:
    options = {"batch_size": batch_size, "sequence_length": sequence_length, "sampler": sampler, "seed": seed}
    stride = min(stride, sequence_length) if sampler == "sliding" else sequence_length
    split = cast(TokenSplit, Counted(length))
    try:
        batches = Batches(split, **options, stride=stride)
    except UserError:
        assume(False)
    count, epochs = batches.windows_per_epoch, 4
    assert count == math.ceil((length - 1 - sequence_length) / stride) + 1
    total = np.zeros(length, dtype=int)
    for epoch in range(epochs):
        visits = np.zeros(length, dtype=int)
        for start in starts(batches, epoch):
            visits[start + 1 : start + 1 + sequence_length] += 1
        assert visits[1:].min() >= 1  # each but the first, which nothing predicts
        assert visits.max() <= math.ceil(sequence_length / stride) + 1
        assert visits.sum() == count * sequence_length
        total += visits
    if sampler != "sliding":
        assert (total[1:] > epochs).sum() <= epochs * (sequence_length - 1)  # only overlaps of two windows
    assert Epochs(count, batch_size).after(count) == batch_size


def test_epochs_end_in_the_batch_that_has_their_last_window() -> None:
    epochs = Epochs(windows=7, batch_size=3)
    assert [step for step in range(1, 15) if epochs.end_at(step)] == [3, 5, 7, 10, 12, 14]
    assert [round(epochs.after(step), 3) for step in (1, 7)] == [0.429, 3.0]


@pytest.mark.parametrize("sampler", ["sequential", "shuffled", "sliding"])
def test_targets_are_the_inputs_moved_on_by_one(split: TokenSplit, sampler: str) -> None:
    batches = Batches(split, batch_size=4, sequence_length=16, sampler=sampler)
    for index in range(2 * batches.windows_per_epoch // 4):
        token_ids, targets = batches.batch(index)
        assert token_ids.shape == targets.shape == (4, 16)
        assert token_ids.dtype == targets.dtype == np.int64
        assert (token_ids == token_ids[:, :1] + np.arange(16)).all()
        assert (targets == token_ids + 1).all()


def test_sequential_windows_follow_each_other_alike_in_every_epoch(split: TokenSplit) -> None:
    batches = Batches(split, batch_size=4, sequence_length=16, sampler="sequential")
    assert starts(batches) == [*range(0, 983, 16), 983]  # the last one ends with the text
    assert starts(batches, epoch=3) == starts(batches)


def test_338025_tokens_give_165_batches_of_2048(tmp_path: Path) -> None:
    # The token count of tiny-shakespeare.
    shards = [{"file": "x", "tokens": 338_025}]
    entry = {"sha256": "", "documents": 1, "document_index": {"file": "y"}, "shards": shards}
    split = TokenSplit(tmp_path, "train", entry)
    for sampler in ("sequential", "shuffled"):
        batches = Batches(split, batch_size=16, sequence_length=128, sampler=sampler)
        assert Epochs(batches.windows_per_epoch, 16).batches == pytest.approx(165, abs=0.1)


def test_shuffled_epochs_repeat_no_window_and_differ(split: TokenSplit) -> None:
    batches = Batches(split, batch_size=4, sequence_length=16, sampler="shuffled", seed=7)
    epochs = [starts(batches, epoch) for epoch in range(3)]
    for epoch in epochs:
        assert max(Counter(epoch).values()) == 1
        assert len(epoch) == 63
    assert epochs[0] != epochs[1] != epochs[2]
    assert {start % 16 for epoch in epochs for start in epoch} == {0, 983 % 16}


def test_sliding_windows_start_a_stride_apart(split: TokenSplit) -> None:
    batches = Batches(split, batch_size=1, sequence_length=16, sampler="sliding", stride=5)
    found = sorted(starts(batches))
    assert found != starts(batches)
    assert (found[0], found[-1]) == (0, 983)
    assert Counter(np.diff(found).tolist()) == {5: 196, 3: 1}  # two overlap by more
    half = Batches(split, batch_size=1, sequence_length=16, sampler="sliding")
    assert Counter(np.diff(sorted(starts(half))).tolist()) == {8: 122, 7: 1}


def test_a_stride_that_leaves_tokens_out_is_refused(split: TokenSplit) -> None:
    with pytest.raises(UserError, match=r"^stride \(17\) must not exceed"):
        Batches(split, batch_size=1, sequence_length=16, sampler="sliding", stride=17)


def test_a_batch_depends_on_its_number_and_the_seed_alone(split: TokenSplit) -> None:
    one, other, unlike = (
        Batches(split, batch_size=4, sequence_length=16, sampler="shuffled", seed=seed) for seed in (1, 1, 2)
    )
    in_order = [one.batch(i)[0] for i in range(40)]
    for index in (39, 3, 17, 0, 22):
        assert (other.batch(index)[0] == in_order[index]).all()
    assert starts(unlike) != starts(one)


def test_changing_a_batch_changes_no_other(split: TokenSplit) -> None:
    batches = Batches(split, batch_size=4, sequence_length=16, sampler="sequential")
    token_ids, targets = batches.batch(0)
    token_ids[:] = 0
    assert (targets[0] == np.arange(1, 17)).all()
    assert (batches.batch(0)[0][0] == np.arange(16)).all()


@pytest.mark.parametrize(("sampler", "stride", "needed"), [("sequential", None, 50), ("sliding", 4, 26)])
def test_a_split_of_just_one_batch_is_enough_and_a_token_less_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, stride: int | None, needed: int
) -> None:
    options = {"batch_size": 4, "sequence_length": 16, "sampler": sampler, "stride": stride}
    enough = counting_split(tmp_path, monkeypatch, needed)
    assert Batches(enough, **options).windows_per_epoch == 4
    short = counting_split(tmp_path, monkeypatch, needed - 1)
    with pytest.raises(
        UserError, match=rf"^batch_size \(4\) .* train split has {needed - 1} tokens, and one batch needs {needed} with"
    ):
        Batches(short, **options)


def test_an_unknown_sampler_is_named(split: TokenSplit) -> None:
    with pytest.raises(UserError, match="'random'"):
        Batches(split, batch_size=4, sequence_length=16, sampler="random")


def test_ids_above_the_signed_half_stay_positive(tmp_path: Path) -> None:
    token_writer.write_tokens(tmp_path / "t", iter(["x<|endoftext|>" * 9]), source="s", shares=ALL_TRAIN)
    token_ids, _ = Batches(
        open_split(tmp_path / "t", "train"), batch_size=1, sequence_length=8, sampler="sequential"
    ).batch(0)
    assert token_ids.max() == Tokenizer.eot_id
