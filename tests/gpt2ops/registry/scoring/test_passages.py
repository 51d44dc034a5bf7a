"""Whether a model may have trained on a text, from hashes of its training passages alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2core.errors import UserError
from gpt2ops.registry.scoring.passages import PASSAGE_TOKENS, read_passages, seen_share, train_passages, write_passages


class Text:
    def __init__(self, values):
        self.values = np.asarray(values, dtype=np.uint16)

    def __len__(self):
        return len(self.values)

    def read(self, start, stop):
        return self.values[start:stop]


def words(count, seed):
    return np.random.default_rng(seed).integers(0, 50257, count)


def share(held_out, theirs, own, most=1 << 20):
    return seen_share(Text(held_out), train_passages(Text(theirs), most), train_passages(Text(own), most))


def slow_share(held_out, theirs, own):
    """The definition, with tuples in sets."""
    passages = [
        {tuple(text[at : at + PASSAGE_TOKENS]) for at in range(len(text) - PASSAGE_TOKENS + 1)}
        for text in (list(held_out), list(theirs), list(own))
    ]
    return len(passages[0] & passages[1] - passages[2]) / len(passages[0]) if passages[0] else None


@settings(deadline=None, max_examples=50)
@given(
    length=st.integers(0, 200), inside=st.integers(0, 200), before=st.integers(0, 90), also_own=st.booleans(),
    alphabet=st.sampled_from([1, 2, 50257]),
)  # fmt: skip
def test_the_share_is_that_of_its_definition_wherever_the_passages_lie(length, inside, before, also_own, alphabet):
    held_out = words(length, 1) % alphabet
    theirs = np.concatenate([words(before, 2), held_out[:inside], words(40, 3)])
    own = held_out[: inside // 2] if also_own else words(100, 4)
    assert share(held_out, theirs, own) == slow_share(held_out, theirs, own)


@pytest.mark.parametrize("piece", [PASSAGE_TOKENS, 1000, 1 << 20])
def test_reading_in_pieces_changes_nothing(piece, monkeypatch):
    text = words(3000, 1)
    whole = train_passages(Text(text)).hashes
    monkeypatch.setattr("gpt2ops.registry.scoring.passages.PIECE", piece)
    assert np.array_equal(train_passages(Text(text)).hashes, whole)


def test_of_a_large_text_a_sample_is_kept_by_which_the_share_is_still_known():
    held_out, rest = words(20_000, 1), words(60_000, 2)
    theirs = np.concatenate([rest, held_out[: len(held_out) // 2]])
    sampled = train_passages(Text(theirs), 4096)
    assert sampled.one_in > 1
    assert len(sampled.hashes) < 2 * 4096
    exact = slow_share(held_out, theirs, words(5000, 3))
    assert share(held_out, theirs, words(5000, 3), most=4096) == pytest.approx(exact, abs=0.1)
    # The two texts may be sampled differently.
    found = seen_share(Text(held_out), sampled, train_passages(Text(words(5000, 3))))
    assert found == pytest.approx(exact, abs=0.1)


def test_a_text_without_a_passage_tells_nothing():
    assert share(words(PASSAGE_TOKENS - 1, 1), words(100, 2), words(100, 3)) is None


def test_a_file_gives_back_what_was_written_and_a_damaged_one_is_named(tmp_path):
    passages = train_passages(Text(words(500, 1)), 64)
    file = write_passages(passages, tmp_path)
    again = read_passages(file)
    assert again.one_in == passages.one_in
    assert np.array_equal(again.hashes, passages.hashes)
    whole = file.read_bytes()
    for content in (b"", b"noise" * 100, whole[:-1], whole.replace(b'"one_in":"', b'"one_in":"x')):
        file.write_bytes(content)
        with pytest.raises(UserError, match=file.name):
            read_passages(file)
