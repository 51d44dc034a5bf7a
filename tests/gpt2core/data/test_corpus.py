import codecs
import csv
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2core.data import corpus, records, text_files
from gpt2core.data import documents as dividing
from gpt2core.data.corpus import check_file, read_corpus
from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer

awkward_text = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\n\n", "\r\n", "\t", "\x1c", "\x85", "\u00a0", "'s", "'ll", "'", "a", "THE", "."]
    )
    | st.sampled_from(["42", "²", ",", "!?", "é", "e\u0301", "中文。", "🙂", "<|endof", "text|>", "<|endoftext|>"])
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=3),
    max_size=60,
).map("".join)


def documents(*files: Path, text_field: str = "text", by: str = "separator") -> list[str]:
    text = "".join(read_corpus(files, text_field=text_field, documents=by))
    assert not text or text.endswith(END_OF_TEXT)
    return text.split(END_OF_TEXT)[:-1]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_separator_on_a_line_of_its_own_takes_only_its_own_line_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\n<|endoftext|>\n\ntwo\r\n<|endoftext|>\r\nthree")
    assert documents(path) == ["one\n", "\ntwo\r\n", "three"]


def test_a_separator_within_a_line_leaves_the_text_around_it_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one <|endoftext|>\ntwo<|endoftext|>three")
    assert documents(path) == ["one ", "\ntwo", "three"]


def test_blank_documents_are_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"<|endoftext|>\n\n<|endoftext|>\none\n<|endoftext|>\n<|endoftext|>\n \n")
    assert documents(path) == ["one\n"]


def test_a_blank_document_longer_than_a_fragment_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one<|endoftext|>" + b" \n" * 300_000 + b"<|endoftext|>two" + b"\n" * 300_000)
    assert documents(path) == ["one", "two" + "\n" * 300_000]


def test_files_are_documents_in_the_order_given(tmp_path: Path) -> None:
    first, second = write(tmp_path / "b.txt", b"b"), write(tmp_path / "a.md", b"a")
    assert documents(first, second) == ["b", "a"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "a.txt", b"\xef\xbb\xbfone")) == ["one"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_compressed_text_reads_like_plain_text(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    content = "Juliet — the sun!\n".encode() * 40_000
    suffix = ".gz" if pack is gzip.compress else ".zst"
    # Two members in one file, as `cat a.gz b.gz` makes.
    path = write(tmp_path / f"a.txt{suffix}", pack(content) + pack(b"end"))
    assert documents(path) == [content.decode() + "end"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_cut_off_compressed_text_is_damaged(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    suffix = ".gz" if pack is gzip.compress else ".zst"
    path = write(tmp_path / f"a.txt{suffix}", pack(b"".join(b"%d " % i for i in range(100_000)))[:-100])
    with pytest.raises(UserError, match=r"a\.txt.*damaged"):
        documents(path)


def test_jsonl_records_are_documents(tmp_path: Path) -> None:
    lines = [json.dumps({"body": text}) for text in ["one", "two\r\nlines", "a" * 300_000, "x<|endoftext|>y"]]
    path = write(tmp_path / "a.jsonl", "\n".join([*lines, "", ""]).encode())
    assert documents(path, text_field="body") == ["one", "two\r\nlines", "a" * 300_000, "x", "y"]


EXAMPLES = "one\r\n\n  two \nthree\n\n \t\nfour, “café” 🎭\n"


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("line", ["one", "  two ", "three", "four, “café” 🎭"]),
        ("paragraph", ["one", "  two \nthree", "four, “café” 🎭"]),
        ("file", [EXAMPLES]),
        ("separator", [EXAMPLES]),
    ],
)
@pytest.mark.parametrize("block", [5, 1 << 17])
def test_lines_and_paragraphs_can_be_documents(by: str, expected: list[str], block: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", EXAMPLES.encode())
    with pytest.MonkeyPatch.context() as patch:
        for module in (text_files, dividing):
            patch.setattr(module, "BLOCK_BYTES", block)
        assert documents(path, by=by) == expected
        assert documents(write(tmp_path / "b.txt", b"\n \n"), path, by=by) == expected


def test_a_file_that_is_one_document_may_not_end_one_within(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"x" * 131_067 + b"<|endoftext|>y")
    with pytest.raises(UserError, match="set documents to separator"):
        documents(path, by="file")
    assert documents(write(tmp_path / "b.txt", b"one<|endoftext|>two\n\nthree"), by="line") == ["one", "two", "three"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig"])
@pytest.mark.parametrize("block", [5, 1 << 17])
def test_a_byte_order_mark_says_the_encoding(encoding: str, block: int, tmp_path: Path) -> None:
    mark = "\ufeff" if encoding.endswith("e") else ""  # without -le or -be Python writes it
    path = write(tmp_path / "a.txt", (mark + EXAMPLES).encode(encoding))
    records = write(tmp_path / "a.jsonl", (mark + json.dumps({"text": EXAMPLES}, ensure_ascii=False)).encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block)
        assert documents(path) == [EXAMPLES]
        assert documents(records) == [EXAMPLES]


TEXTS = ["one", 'a "quoted", text', "two\nlines", "x<|endoftext|>y"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("header", [["body"], ["number", "body", "rest"]])
def test_rows_below_a_header_are_documents(suffix: str, header: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as Excel writes it
        rows = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
        rows.writerows([header, *[[dict.fromkeys(header, "-") | {"body": text}][0].values() for text in TEXTS]])
    expected = [*TEXTS[:3], "x", "y"]
    assert documents(path, text_field="body") == expected
    if len(header) == 1:  # gpt-2-simple's: whatever the only column is called
        assert documents(path) == expected
    else:
        with pytest.raises(UserError, match=r"no column 'text' \(it has 'number', 'body', 'rest'\)"):
            documents(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_or_one_object_a_line(indent: int | None, tmp_path: Path) -> None:
    objects = [{"text": text, "other": 1} for text in TEXTS]
    expected = [*TEXTS[:3], "x", "y"]
    assert documents(write(tmp_path / "a.json", b"\n " + json.dumps(objects, indent=indent).encode())) == expected
    assert documents(write(tmp_path / "b.json", json.dumps(TEXTS, indent=indent).encode())) == expected
    assert documents(write(tmp_path / "c.json", "\n".join(map(json.dumps, objects)).encode())) == expected


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"story {i}" for i in range(1000)]
    pq.write_table(pa.table({"text": texts, "other": range(1000)}), tmp_path / "a.parquet", row_group_size=300)
    assert documents(tmp_path / "a.parquet") == texts


@settings(max_examples=500, deadline=None)
@given(text=awkward_text | st.text(" \n\ta'.s1\u4e2d", min_size=40, max_size=120))
@example("       \u4e2d\u6587\u3002\n\n<|endoftext|>")
def test_fragments_have_the_ids_of_the_whole_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.mktemp("corpus") / "a.txt", text.encode())
    whole = "".join(read_corpus([path]))
    with pytest.MonkeyPatch.context() as patch:
        for module in (text_files, dividing):
            patch.setattr(module, "BLOCK_BYTES", 5)
        for module in (corpus, dividing):
            patch.setattr(module, "FRAGMENT_CHARACTERS", 3)
        fragments = list(read_corpus([path]))
    assert "".join(fragments) == whole
    encode = Tokenizer().encode
    assert [token for fragment in fragments for token in encode(fragment)] == encode(whole)


def test_a_long_document_is_cut_into_fragments_with_the_same_ids(tmp_path: Path) -> None:
    text = "".join(f"Line {i}  of 'tis\n\n" + " " * (i % 7) for i in range(40_000))
    fragments = list(read_corpus([write(tmp_path / "a.txt", text.encode())]))
    assert max(map(len, fragments)) < 4 * corpus.FRAGMENT_CHARACTERS
    assert len(fragments) > 3
    ids = [token for fragment in fragments for token in Tokenizer().encode(fragment)]
    assert ids == [*Tokenizer().encode(text), Tokenizer.eot_id]


def test_text_without_any_break_is_still_read_in_bounded_fragments(tmp_path: Path) -> None:
    path = write(tmp_path / "dna.txt", b"ACGT" * 3_000_000)
    fragments = list(read_corpus([path]))
    assert max(map(len, fragments)) < 2 * dividing.UNBROKEN_CHARACTERS
    assert sum(map(len, fragments)) == 12_000_000 + len(END_OF_TEXT)


def test_progress_counts_every_byte_of_the_files(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.txt", b"word " * 100_000), write(tmp_path / "b.txt.gz", gzip.compress(b"word " * 9))]
    heard: list[int] = []
    list(read_corpus(files, on_bytes=heard.append))
    assert sum(heard) == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt: the file is empty \(0 bytes\)"),
        ("a.txt", b" \n\n", "holds no text, only blanks"),
        ("a.txt", b"abc\x00def", "byte 3 is NUL"),
        ("a.txt", b"x" * 200_000 + b"\x00", "byte 200000 is NUL"),
        ("a.txt", b"caf\xe9 au lait", r"byte 3 \(0xE9\) is not valid UTF-8"),
        ("a.txt", b"x" * 131_071 + "é".encode() + b"\xff", r"byte 131073 \(0xFF\)"),
        ("a.txt", b"\xef\xbb\xbfab\xff", r"byte 5 \(0xFF\)"),
        ("a.txt", b"cut \xe4\xb8", r"byte 4 \(0xE4\)"),
        ("a.txt.gz", gzip.compress(b"caf\xe9 au lait", mtime=0), r"byte 3 \(0xE9\)"),
        ("a.txt.gz", b"no gzip", "compressed data is damaged"),
        ("a.txt.zst", b"no zstd at all", "compressed data is damaged"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2: not a JSON object but list"),
        ("a.jsonl", b'{"text": "a"}\n\n{"story": "b"}\n', r"line 3: no field 'text' \(it has 'story'\)"),
        ("a.jsonl", b'{"text": 7}\n', "line 1: field 'text' is not a text but int"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', "line 1: field 'text': character 0 .* lone surrogate"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"byte 24 \(0xFF\)"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\x00\x00\xdc", r"byte 4 \(0x00\) is not valid UTF-16"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\x00b", r"byte 4 \(0x62\) is not valid UTF-16"),
        ("a.txt", codecs.BOM_UTF16_LE + b"a\x00\x00\x00", "NUL before byte 6"),
        ("a.csv", b'text,other\n"open', r"line 2: not valid .csv"),
        ("a.csv", b"text,other\none\n", r"line 2: 1 fields, but the header has 2"),
        ("a.csv", b"", "empty"),
        ("a.json", b"[1", "not valid JSON"),
        ("a.json", b"[1]", "record 1: not a JSON object but int"),
        ("a.json", b'{"a": 1}', r"line 1: no field 'text'"),
        ("a.parquet", b"PAR1 no", "not a readable .parquet file"),
        ("a.pdf", b"text", "cannot read this kind of file"),
        ("a.parquet.gz", b"text", "cannot read this kind of file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        check_file(write(tmp_path / name, content))
    assert "\n" not in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)


def test_parquet_without_the_column_or_with_a_null_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", None], "number": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"no column 'story' \(it has 'text', 'number'\)"):
        check_file(tmp_path / "a.parquet", text_field="story")
    with pytest.raises(UserError, match="column 'number' is not text but int64"):
        check_file(tmp_path / "a.parquet", text_field="number")
    with pytest.raises(UserError, match="row 2: column 'text' is null"):
        check_file(tmp_path / "a.parquet")


def test_a_parquet_file_whose_name_is_no_utf8_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.parquet"))
    (tmp_path / "a.parquet").rename(odd)
    assert documents(odd) == ["one", "two"]


def test_a_parquet_file_with_a_schema_that_the_reader_lacks_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one"], "n": pa.array([1], pa.uint8())}), tmp_path / "a.parquet", version="2.6")
    content, lines = (tmp_path / "a.parquet").read_bytes(), []
    for at in range(len(content)):  # whatever byte is another, it is text or one line
        spoiled = write(tmp_path / "b.parquet", content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :])
        try:
            documents(spoiled)
        except UserError as error:
            lines.append(len(str(error).splitlines()))
    assert set(lines) == {1}


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records, "LONGEST_RECORD", 2_000_000)
    content = b'{"text": "one"}\n{"text": "' + b"a" * 50_000_000
    path = write(tmp_path / "a.jsonl.zst", zstandard.compress(content))
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match=r"a.jsonl.zst: line 2: longer than 2,000,000 characters"):
        documents(path)
