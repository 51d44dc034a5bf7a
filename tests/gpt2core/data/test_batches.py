from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gpt2core.data import writer as token_writer
from gpt2core.data.batches import Batches
from gpt2core.data.tokens import TokenSplit, open_split
from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer

ALL_TRAIN = {"train": 1.0, "val": 0.0, "test": 0.0}
LENGTH = 1000


def counting_split(directory: Path, monkeypatch: pytest.MonkeyPatch, length: int = LENGTH) -> TokenSplit:
    """A split whose token ids are 0, 1, 2, …, so that a batch shows its places."""
    monkeypatch.setattr(token_writer, "encode_fragments", lambda *_: iter([np.arange(length, dtype=np.uint16)]))
    token_writer.write_tokens(directory / "t", [], source="count", shares=ALL_TRAIN, shard_tokens=333)
    return open_split(directory / "t", "train")


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenSplit:
    return counting_split(tmp_path, monkeypatch)


def starts(batches: Batches, epoch: int = 0) -> list[int]:
    first = epoch * batches.batches_per_epoch
    return [int(row[0]) for i in range(batches.batches_per_epoch) for row in batches.batch(first + i)[0]]


@pytest.mark.parametrize("sampler", ["sequential", "shuffled", "sliding"])
def test_targets_are_the_inputs_moved_on_by_one(split: TokenSplit, sampler: str) -> None:
    batches = Batches(split, batch_size=4, sequence_length=16, sampler=sampler)
    for index in range(2 * batches.batches_per_epoch):
        token_ids, targets = batches.batch(index)
        assert token_ids.shape == targets.shape == (4, 16)
        assert token_ids.dtype == targets.dtype == np.int64
        assert (token_ids == token_ids[:, :1] + np.arange(16)).all()
        assert (targets == token_ids + 1).all()


def test_sequential_windows_follow_each_other_alike_in_every_epoch(split: TokenSplit) -> None:
    batches = Batches(split, batch_size=4, sequence_length=16, sampler="sequential")
    assert batches.batches_per_epoch == 999 // (4 * 16)
    assert starts(batches) == list(range(0, batches.batches_per_epoch * 64, 16))
    assert starts(batches, epoch=3) == starts(batches)


def test_338025_tokens_give_165_batches_of_2048(tmp_path: Path) -> None:
    # The token count of tiny-shakespeare.
    shards = [{"file": "x", "tokens": 338_025}]
    entry = {"sha256": "", "documents": 1, "document_index": {"file": "y"}, "shards": shards}
    split = TokenSplit(tmp_path, "train", entry)
    for sampler in ("sequential", "shuffled"):
        assert Batches(split, batch_size=16, sequence_length=128, sampler=sampler).batches_per_epoch == 165


def test_shuffled_epochs_repeat_no_window_and_differ(split: TokenSplit) -> None:
    batches = Batches(split, batch_size=4, sequence_length=16, sampler="shuffled", seed=7)
    epochs = [starts(batches, epoch) for epoch in range(3)]
    for epoch in epochs:
        assert max(Counter(epoch).values()) == 1
        assert len(epoch) == 60
    assert epochs[0] != epochs[1] != epochs[2]
    assert {start % 16 for epoch in epochs for start in epoch} == {0}


def test_windows_left_out_of_one_epoch_come_in_others(split: TokenSplit) -> None:
    batches = Batches(split, batch_size=40, sequence_length=16, sampler="shuffled")
    assert batches.batches_per_epoch == 1
    assert len({start for epoch in range(20) for start in starts(batches, epoch)}) == 62


def test_sliding_windows_start_a_stride_apart(split: TokenSplit) -> None:
    batches = Batches(split, batch_size=1, sequence_length=16, sampler="sliding", stride=5)
    assert sorted(starts(batches)) == list(range(0, 984, 5))
    assert starts(batches) != sorted(starts(batches))
    half = Batches(split, batch_size=1, sequence_length=16, sampler="sliding")
    assert sorted(starts(half)) == list(range(0, 984, 8))


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


@pytest.mark.parametrize(("sampler", "stride", "needed"), [("sequential", None, 65), ("sliding", 4, 29)])
def test_a_split_of_just_one_batch_is_enough_and_a_token_less_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, stride: int | None, needed: int
) -> None:
    options = {"batch_size": 4, "sequence_length": 16, "sampler": sampler, "stride": stride}
    enough = counting_split(tmp_path, monkeypatch, needed)
    assert Batches(enough, **options).batches_per_epoch == 1
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
