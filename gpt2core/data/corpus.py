"""Reading a corpus as one stream of text in which every document ends with `<|endoftext|>`.

Where documents begin and end:
- a record of a .jsonl, .json, .csv, .tsv or .parquet file is a document of its own;
- a text file is one, or each of its lines is, or each of its paragraphs (`documents`);
- `<|endoftext|>` inside one ends a document there. On a line of its own it takes its line end with it; every other
  character stays, so that the documents of "a\\n<|endoftext|>\\nb\\n" are "a\\n" and "b\\n";
- a document of nothing but blanks is dropped, and so is the byte order mark at the start of a file.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gpt2core.data.documents import FRAGMENT_CHARACTERS, close_text, documents_of
from gpt2core.data.records import csv_texts, json_texts, jsonl_texts, parquet_texts
from gpt2core.data.text_files import decoded, decompressed, refused

RECORDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (".txt", ".md", *RECORDS)
COMPRESSIONS = (".gz", ".zst")


class Format(NamedTuple):
    kind: str  # one of SUFFIXES
    compression: str  # one of COMPRESSIONS, or empty


def file_format(path: Path) -> Format:
    """How to read `path`, from its name. Raises UserError for an unknown suffix."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in SUFFIXES or (kind == ".parquet" and compression):
        known = f"known: {', '.join(SUFFIXES)}, all but the last also .gz and .zst"
        raise refused(path, "cannot read this kind of file", known)
    return Format(kind, compression)


def read_corpus(
    files: Iterable[Path],
    *,
    text_field: str = "text",
    documents: str = "separator",
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[str]:
    """The documents of `files` in order, each followed by `<|endoftext|>`, in fragments of bounded length.

    The ids of the fragments, one after the other, are those of the whole text. `on_bytes` is called with the
    number of bytes read since its last call. Raises UserError naming file and byte, line or row of invalid text.
    """
    return _gather(
        fragment for path in files for fragment in _read_file(path, text_field, documents, on_bytes or _ignore)
    )


def check_file(path: Path, *, text_field: str = "text", documents: str = "separator") -> None:
    """Read all of `path`. Raises UserError if `read_corpus` cannot read it, or if it has no text."""
    if not path.stat().st_size:
        raise refused(path, "the file is empty (0 bytes)", "give one with text")
    if not sum(1 for _ in read_corpus([path], text_field=text_field, documents=documents)):
        raise refused(path, "the file holds no text, only blanks", "give one with text")


def _ignore(num_bytes: int) -> None:
    pass


def _read_file(path: Path, text_field: str, documents: str, on_bytes: Callable[[int], None]) -> Iterator[str]:
    kind, compression = file_format(path)
    if kind not in RECORDS:
        yield from documents_of(path, decoded(path, decompressed(path, compression, on_bytes)), documents)
        return
    if kind == ".parquet":
        texts = parquet_texts(path, text_field, on_bytes)
    else:
        blocks = decoded(path, decompressed(path, compression, on_bytes))
        if kind in (".csv", ".tsv"):
            texts = csv_texts(path, blocks, text_field, "," if kind == ".csv" else "\t")
        else:
            texts = (json_texts if kind == ".json" else jsonl_texts)(path, blocks, text_field)
    for text in texts:
        yield from close_text(text)


def _gather(fragments: Iterable[str]) -> Iterator[str]:
    """Join small fragments: encoding has a cost per call."""
    parts: list[str] = []
    size = 0
    for fragment in fragments:
        parts.append(fragment)
        size += len(fragment)
        if size >= FRAGMENT_CHARACTERS:
            yield "".join(parts)
            parts, size = [], 0
    if parts:
        yield "".join(parts)
