"""Small inputs that claim much: each is refused, or read, with bounded memory and in bounded time."""

import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zstandard

from gpt2core.data import text_files
from gpt2core.data.corpus import read_corpus
from gpt2core.errors import UserError
from gpt2core.importing.tf_checkpoint import read_tf_checkpoint
from gpt2core.storage.bounds import Budget, read_whole
from gpt2core.storage.files import atomic_path
from tests.support.small_project import ROOT
from tests.support.tensorflow_checkpoint import block, message, varint, write_checkpoint, write_table

GROWTH = 250 * 2**20  # bytes that a child may take beyond its imports

READ = """
import resource, sys
from pathlib import Path
from gpt2core.data.corpus import read_corpus
from gpt2core.errors import UserError
from gpt2core.importing.tf_checkpoint import read_tf_checkpoint
import pyarrow.parquet
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, path = peak(), Path(sys.argv[1])
try:
    print(read_tf_checkpoint(path) and "read" if path.suffix == "" else sum(len(one) for one in read_corpus([path])))
except UserError as error:
    print(error)
print(peak() - before)
"""


def read_in_child(path: Path) -> tuple[str, int]:
    """What reading `path` gave, and by how many bytes the child's memory grew."""
    result = subprocess.run(
        [sys.executable, "-c", READ, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *said, grown = result.stdout.splitlines()
    return " ".join(said), int(grown)


def test_a_text_that_stands_in_every_row_of_a_parquet_file_is_in_memory_once(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, length, rows = tmp_path / "a.parquet", 1_500_000, 256
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * length]))
    pq.write_table(pa.table({"text": texts}), file, compression="zstd")
    assert file.stat().st_size < 10_000
    said, grown = read_in_child(file)
    assert "claims more bytes of text than" in said
    assert grown < GROWTH < length * rows


def test_pages_that_expand_out_of_all_proportion_are_refused_before_they_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "a.parquet"
    rows = [f"{number}" + "a" * 40_000_000 for number in range(10)]
    pq.write_table(pa.table({"text": rows}), file, compression="zstd", use_dictionary=False)
    assert file.stat().st_size < 100_000
    said, grown = read_in_child(file)
    assert "claims more bytes of text than" in said
    assert grown < GROWTH / 2


def test_compressed_text_that_expands_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "FREE_BYTES", 1_000_000)
    file = tmp_path / "a.txt.zst"
    file.write_bytes(zstandard.compress(b"all work and no play\n" * 5_000_000))
    with pytest.raises(UserError, match=r"a.txt.zst claims more bytes of text than .* without compression"):
        for _ in read_corpus([file]):
            pass
    ordinary = tmp_path / "b.txt.zst"
    text = "".join(f"line {number}\n" for number in range(300_000))
    ordinary.write_bytes(zstandard.compress(text.encode()))
    assert "".join(read_corpus([ordinary])).startswith(text)


def test_names_of_a_tensorflow_index_that_share_one_place_are_refused(tmp_path: Path) -> None:
    """Five hundred names of 16 MB each are 8 GB of tensors in a checkpoint of 16 MB."""
    tensor = torch.zeros(4_000_000)
    write_checkpoint({"model/wte": tensor}, tmp_path)
    shape = message((2, message((1, len(tensor)))))
    entry = message((1, 1), (2, shape), (4, 0), (5, tensor.nbytes))
    entries = [(b"", message((1, 1)))] + [(f"model/h{n:03}/x".encode(), entry) for n in range(500)]
    write_table(tmp_path / "model-1000.index", [block(entries)])
    said, grown = read_in_child(tmp_path / "model-1000")
    assert said.startswith(f"{tmp_path}/model-1000.index claims more bytes of tensors than {tensor.nbytes:,}")
    assert grown < GROWTH


@pytest.mark.parametrize("kind", ["a long name that all share", "a block that is named often"])
def test_a_small_tensorflow_index_cannot_keep_its_reader_at_work(tmp_path: Path, kind: str) -> None:
    if kind.startswith("a long"):
        name = b"model/" + b"x" * 700_000
        body = varint(0) + varint(len(name)) + varint(0) + name
        body += (varint(len(name)) + varint(0) + varint(0)) * 160_000
        parts, repeats = [body + struct.pack("<II", 0, 1)], 1
    else:
        parts, repeats = [block([(f"model/{n:06}".encode(), b"") for n in range(50_000)])], 50_000
    index = tmp_path / "model-1.index"
    write_table(index, parts, repeats)
    assert index.stat().st_size < 2_000_000
    with pytest.raises(UserError, match="claims more bytes of names than"):
        read_tf_checkpoint(tmp_path / "model-1")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices here")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--prompt-file", "prompts.jsonl", "--output", "/dev/full"],
        ["--prompt-file", "prompts.jsonl", "--output", "/dev/zero"],
        ["--prompt-file", "/dev/zero"],
    ],
)
def test_a_device_that_never_ends_is_named_and_not_read(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    code = "from gpt2ops.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "generate", *arguments], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode != 0
    (line,) = result.stderr.splitlines()
    assert f"({arguments[-1]}) is no file, but a device" in line


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(os.devnull)])
def test_a_file_takes_the_place_of_no_device_and_no_pipe(tmp_path: Path, make: Callable[[Path], object]) -> None:
    target = tmp_path / "out.json"
    make(target)
    mode = target.lstat().st_mode
    refused = pytest.raises(UserError, match="out.json is no file, but a device, a pipe or a socket")
    with refused, atomic_path(target) as partial:
        partial.write_text("{}")
    assert stat.S_IFMT(target.lstat().st_mode) == stat.S_IFMT(mode)
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_read_as_a_whole_has_a_limit_and_a_budget_is_of_all_claims(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * 100)
    assert read_whole(file, 100) == b"x" * 100
    with pytest.raises(UserError, match="has more than 99 bytes"):
        read_whole(file, 99)
    budget = Budget(file, 100, "bytes")
    budget.take(60)
    with pytest.raises(UserError, match="claims more bytes than 100"):
        budget.take(41)
