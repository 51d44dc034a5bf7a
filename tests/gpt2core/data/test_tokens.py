import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gpt2core.data.corpus import read_corpus
from gpt2core.data.tokens import open_split, open_tokens
from gpt2core.data.writer import encode_fragments, write_tokens
from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer

EIGHTY = {"train": 0.8, "val": 0.1, "test": 0.1}
ALL_TRAIN = {"train": 1.0, "val": 0.0, "test": 0.0}
STORIES = [f"Story {i}. " + "Once upon a time there was a cat. " * (i % 5 + 1) for i in range(100)]
STREAM = Tokenizer().encode(END_OF_TEXT.join(STORIES))
CORPUS = Path(__file__).parents[3] / "data" / "corpus" / "shakespeare-plays.txt"


def fragments(texts: list[str]) -> Iterator[str]:
    return iter([text + END_OF_TEXT for text in texts])


def read_all(directory: Path, name: str) -> list[int]:
    split = open_split(directory, name)
    return split.read(0, len(split)).tolist()


def test_one_document_is_its_ids_with_no_end_of_text(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", fragments(["To be, or not to be"]), source="s", shares=ALL_TRAIN)
    assert read_all(tmp_path / "t", "train") == Tokenizer().encode("To be, or not to be")


def test_end_of_text_stands_between_documents(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=ALL_TRAIN)
    assert read_all(tmp_path / "t", "train") == STREAM
    assert STREAM.count(Tokenizer.eot_id) == len(STORIES) - 1


def test_token_splits_are_three_consecutive_runs_of_the_stream(tmp_path: Path) -> None:
    shares = {"train": 0.7, "val": 0.2, "test": 0.1}
    manifest = write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=shares, split_by="tokens")
    parts = [read_all(tmp_path / "t", name) for name in ("train", "val", "test")]
    assert [*itertools.chain(*parts)] == STREAM
    assert [len(part) for part in parts] == [round(share * len(STREAM)) for share in (0.7, 0.2, 0.1)]
    assert manifest["split_by"] == "tokens"


def test_document_splits_hold_each_document_whole_and_once(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=EIGHTY)
    assert manifest["split_by"] == "documents"
    found = []
    for name in ("train", "val", "test"):
        split = open_split(tmp_path / "t", name)
        edges = [*split.document_starts, len(split)]
        texts = [Tokenizer().decode(split.read(a, b)).removesuffix(END_OF_TEXT) for a, b in itertools.pairwise(edges)]
        assert len(texts) == split.num_documents == manifest["splits"][name]["documents"]
        found += texts
    assert sorted(found) == sorted(STORIES)


def test_the_bundled_plays_are_eight_documents_split_six_one_one(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path / "t", read_corpus([CORPUS]), source="bundled", shares=EIGHTY)
    # 323,296 as one text, less the line ends of the seven separator lines.
    assert manifest["tokens"] == 323_289
    assert [manifest["splits"][name]["documents"] for name in ("train", "val", "test")] == [6, 1, 1]
    first = Tokenizer().decode(open_split(tmp_path / "t", "train").read(0, 40))
    assert first.startswith("HAMLET, PRINCE OF DENMARK\n\nby William Shakespeare")


def test_a_split_without_a_share_is_empty(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=ALL_TRAIN)
    for name in ("val", "test"):
        split = open_split(tmp_path / "t", name)
        assert (len(split), split.num_documents, list(split.document_starts)) == (0, 0, [])
        assert split.read(0, 0).tolist() == []


def test_reads_across_shard_borders(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=ALL_TRAIN, shard_tokens=7)
    split = open_split(tmp_path / "t", "train")
    assert len(list((tmp_path / "t").glob("train-0*.bin"))) > 100
    for start, stop in ((0, 7), (6, 8), (7, 14), (3, 40), (len(STREAM) - 1, len(STREAM)), (14, 14)):
        assert split.read(start, stop).tolist() == STREAM[start:stop]
        assert split.read(start, stop).dtype == np.uint16
    with pytest.raises(IndexError):
        split.read(0, len(STREAM) + 1)


def test_max_tokens_keeps_the_first_of_the_stream(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=ALL_TRAIN, max_tokens=100)
    assert read_all(tmp_path / "t", "train") == STREAM[:100]
    assert manifest["tokens"] == 100


def test_max_tokens_reads_no_more_of_the_corpus_than_it_needs(tmp_path: Path) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "again and "

    write_tokens(tmp_path / "t", endless(), source="s", shares=ALL_TRAIN, max_tokens=50)
    assert len(open_split(tmp_path / "t", "train")) == 50


@pytest.mark.parametrize("split_by", ["documents", "tokens"])
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, split_by: str) -> None:
    for workers in (1, 5):
        target = tmp_path / str(workers)
        write_tokens(target, fragments(STORIES), source="s", shares=EIGHTY, split_by=split_by, workers=workers)
    files = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "5").iterdir())
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "5" / name).read_bytes()


def test_only_a_few_fragments_are_taken_ahead_of_the_writer() -> None:
    taken = 0

    def counted() -> Iterator[str]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield "word"

    arrays = encode_fragments(counted(), workers=2)
    next(arrays)
    assert taken <= 6
    assert sum(len(array) for array in arrays) == 999


def test_a_reading_error_leaves_the_earlier_tokens_untouched(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=EIGHTY)
    before = {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()}

    def broken() -> Iterator[str]:
        yield from fragments(STORIES)
        raise UserError("byte 7 is not valid UTF-8")

    with pytest.raises(UserError, match="byte 7"):
        write_tokens(tmp_path / "t", broken(), source="s", shares=EIGHTY)
    assert {path.name: path.read_bytes() for path in (tmp_path / "t").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=EIGHTY)
    (tmp_path / "t" / "val-00000.bin").unlink()
    with pytest.raises(UserError, match=r"val-00000\.bin is missing"):
        open_split(tmp_path / "t", "val")


def test_a_cut_shard_is_named(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=EIGHTY)
    path = tmp_path / "t" / "test-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test-00000\.bin has \d+ bytes, expected"):
        open_split(tmp_path / "t", "test")


def test_verify_finds_a_changed_byte(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=EIGHTY)
    open_tokens(tmp_path / "t").verify()
    path = tmp_path / "t" / "train-00000.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    open_split(tmp_path / "t", "train")
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged"):
        open_tokens(tmp_path / "t").verify()


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "tokenize a corpus first"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({"format_version": 1}), "is damaged"),
        (json.dumps({"format_version": 1, "tokens": 1, "sha256": "", "splits": {"train": 3}}), "is damaged"),
        (json.dumps({"format_version": 99}), "format_version is 99, expected 1"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Path, manifest: str | None, message: str) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=rf"manifest\.json.*{message}"):
        open_tokens(tmp_path).split("train")


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=EIGHTY)
    with pytest.raises(UserError, match="unknown split 'dev'; known: train, val, test"):
        open_split(tmp_path / "t", "dev")


def test_a_corpus_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no text"):
        write_tokens(tmp_path / "t", iter([]), source="s", shares=EIGHTY)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
def test_memory_stays_bounded_however_long_the_text(tmp_path: Path) -> None:
    text = CORPUS.read_text().replace(END_OF_TEXT, "")
    code = (
        "import resource, sys; from pathlib import Path; from gpt2core.data.corpus import read_corpus\n"
        "from gpt2core.data.writer import write_tokens\n"
        f"write_tokens(sys.argv[2], read_corpus([Path(sys.argv[1])]), source='s', shares={EIGHTY!r})\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for copies in (6, 60):
        path = tmp_path / f"{copies}.txt"
        with path.open("w") as handle:
            handle.writelines(text for _ in range(copies))
        command = [sys.executable, "-c", code, str(path), str(tmp_path / "t")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    # 54 MB more text: less than half of that as memory. ru_maxrss counts KiB, on a Mac bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    assert (peaks[1] - peaks[0]) * unit < 25e6, peaks


def change_manifest(directory: Path, change) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    change(manifest["splits"])
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda splits: splits["train"]["shards"].reverse(),
        lambda splits: splits["train"]["shards"].pop(),
        lambda splits: splits["val"].update(splits["train"]),
        lambda splits: splits.pop("test"),
    ],
)
def test_a_manifest_that_lists_whole_shards_wrongly_is_damaged(tmp_path: Path, change) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=EIGHTY, shard_tokens=300)
    tokens = open_tokens(tmp_path / "t")
    tokens.verify()
    change_manifest(tmp_path / "t", change)
    with pytest.raises(UserError, match="is damaged"):
        open_tokens(tmp_path / "t").verify()


@pytest.mark.parametrize("value", [-1, 2**70, 1.5, True, "7", None, [1]])
@pytest.mark.parametrize("key", ["documents", "shards"])
def test_a_count_in_the_manifest_that_is_none_is_damage(tmp_path: Path, key: str, value: object) -> None:
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=EIGHTY)
    change_manifest(tmp_path / "t", lambda splits: splits["train"].update({key: value}))
    with pytest.raises(UserError, match="is damaged"):
        open_split(tmp_path / "t", "train")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format_version": ' + "9" * 5000 + "}", '{"format_version": 1}'])
def test_a_manifest_that_a_parser_stumbles_over_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        open_tokens(tmp_path)


def test_a_shard_that_is_cut_short_while_it_is_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    # A memory map would end the process by SIGBUS.
    write_tokens(tmp_path / "t", fragments(STORIES), source="s", shares=ALL_TRAIN)
    split = open_split(tmp_path / "t", "train")
    assert split.read(0, len(split)).tolist() == STREAM
    os.truncate(tmp_path / "t/train-00000.bin", 2 * (len(split) // 2))
    assert split.read(0, 5).tolist() == STREAM[:5]
    with pytest.raises(UserError, match=r"train-00000\.bin .*cut short.*tokenize the corpus again"):
        split.read(len(split) - 5, len(split))
