"""Small files of records that claim much: refused or read in memory of the longest record."""

import itertools
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from gpt2core.data import records
from gpt2core.data.corpus import read_corpus
from gpt2core.data.documents import FRAGMENT_CHARACTERS, find_cut
from gpt2core.data.examples.reading import Fields, read_examples
from gpt2core.data.json_array import array_items
from gpt2core.data.text_files import BLOCK_BYTES, decompressed
from gpt2core.errors import UserError

ARRAYS = ["[]", "[1]", ' [1.5, "a,]\\"", [2, [3]], {"b": null}, true, 12] \n', '["' + "é" * 50 + '", 1e5]']


@pytest.mark.parametrize("text", ARRAYS)
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_an_array_comes_in_items_wherever_its_blocks_end(text: str, size: int) -> None:
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    assert list(array_items(Path("a"), blocks, 100)) == json.loads(text)


@pytest.mark.parametrize(
    "text", ["[", "[1", "[1,", "[1 2]", "[1,]", "[,]", "[1]]", "[1}", '["a', "[nul]", "[" * 90_000]
)
def test_an_array_that_is_not_valid_is_refused_with_its_record(text: str) -> None:
    blocks = [text[at : at + 3] for at in range(0, len(text), 3)]
    with pytest.raises(UserError, match="not valid JSON"):
        list(array_items(Path("a"), blocks, 100_000))


def test_an_array_is_in_memory_for_its_longest_item_and_no_item_is_endless() -> None:
    count, item = 500_000, '{"text": "abc def"}'
    blocks = itertools.chain("[", (f"{item}," for _ in range(count - 1)), (item, "]"))
    tracemalloc.start()
    try:
        assert sum(1 for _ in array_items(Path("a"), blocks, 100)) == count
        assert tracemalloc.get_traced_memory()[1] < count
    finally:
        tracemalloc.stop()
    with pytest.raises(UserError, match="record 2: invalid, or longer than 9 characters"):
        list(array_items(Path("a"), ["[1,", "[1, 2, 3, 4, 5, 6", ", 7]"], 9))


def test_a_few_compressed_bytes_come_in_small_blocks(tmp_path: Path) -> None:
    file = tmp_path / "a.txt.zst"
    file.write_bytes(zstandard.compress(b"a" * 20_000_000))
    assert file.stat().st_size < 4096  # what is read at a time
    assert max(map(len, decompressed(file, ".zst", id))) <= BLOCK_BYTES


def test_a_text_that_stands_often_in_one_row_is_not_copied_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(records, "LONGEST_RECORD", 20_000_000)
    length, often = 5_000_000, 500
    text = pa.DictionaryArray.from_arrays(pa.array([0] * often, pa.int32()), pa.array(["a" * length]))
    role = pa.DictionaryArray.from_arrays(pa.array([0] * often, pa.int32()), pa.array(["user"]))
    messages = pa.StructArray.from_arrays([role, text], ["role", "content"])
    table = pa.table({"messages": pa.ListArray.from_arrays(pa.array([0, often], pa.int32()), messages)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    del table, messages, text
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match="row 1: longer than 20,000,000 bytes"):
        list(read_examples([tmp_path / "a.parquet"], "chat", Fields()))
    assert pa.total_allocated_bytes() - before < 10 * length


def test_texts_of_64_bit_offsets_are_in_memory_once_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    length, rows = 5_000_000, 200
    texts = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array(["a b" * length], pa.large_string())
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd")
    del texts
    for _ in read_corpus([tmp_path / "a.parquet"]):
        assert pa.total_allocated_bytes() < 20 * length
        break


def test_a_cut_is_found_in_the_time_that_reading_takes() -> None:
    """The last place before the limit, as a search from its end finds it."""
    for text in ("a" * 300_000 + " b" + "a" * 300_000, "one, two.", "a" * FRAGMENT_CHARACTERS, "  \n x", "a.b c"):
        for limit in (len(text), len(text) - 14, len(text) // 2 + 9):
            expected = [
                at
                for at in range(max(1, limit - 2 * BLOCK_BYTES + 1), min(limit, len(text) - 2) + 1)
                if (text[at] in " \n\t\r" and not text[at + 1].isspace())
                or (text[at] in ".," and text[at - 1].isalnum())
            ]
            assert find_cut(text, limit) == (expected[-1] if expected else 0)


def test_a_message_names_the_first_of_many_columns() -> None:
    count = 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"no column 'text' \(it has 'a', 'a'.*\.\.\.\)"):
            list(records.csv_texts(Path("a.csv"), ["a," * count], "text", ","))
        assert tracemalloc.get_traced_memory()[1] < count * 40  # a name in quotes takes more
    finally:
        tracemalloc.stop()
