"""Reading a corpus as one stream of text in which every document ends with `<|endoftext|>`.

Where documents begin and end:
- a file, and a record of a .jsonl or .parquet file, is a document of its own;
- `<|endoftext|>` inside one ends a document there. On a line of its own it takes its line end with it; every other
  character stays, so that the documents of "a\\n<|endoftext|>\\nb\\n" are "a\\n" and "b\\n";
- a document of nothing but blanks is dropped, and so is the byte order mark at the start of a file.
"""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from gpt2core.errors import UserError
from gpt2core.extras import needs_extra
from gpt2core.tokenizer import END_OF_TEXT, check_unicode

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".zst")

BLOCK_BYTES = 1 << 17
FRAGMENT_CHARACTERS = 1 << 17
# A text without a word boundary in this many characters is cut anywhere, so that memory stays bounded.
UNBROKEN_CHARACTERS = 1 << 22
# A .jsonl line is read as a whole, and a few compressed bytes can expand to an endless line.
LONGEST_LINE_BYTES = 1 << 28
# To the tokenizer's pattern neither letter, digit nor blank, nor the start of a contraction.
_PUNCTUATION = frozenset(".,;:!?\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f")


class Format(NamedTuple):
    kind: str  # one of SUFFIXES
    compression: str  # one of COMPRESSIONS, or empty


def file_format(path: Path) -> Format:
    """How to read `path`, from its name. Raises UserError for an unknown suffix."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in SUFFIXES or (kind == ".parquet" and compression):
        known = f"known: {', '.join(SUFFIXES)}, the first three also .gz and .zst"
        raise _refused(path, "cannot read this kind of file", known)
    return Format(kind, compression)


def read_corpus(
    files: Iterable[Path], *, text_field: str = "text", on_bytes: Callable[[int], None] | None = None
) -> Iterator[str]:
    """The documents of `files` in order, each followed by `<|endoftext|>`, in fragments of bounded length.

    The ids of the fragments, one after the other, are those of the whole text. `on_bytes` is called with the
    number of bytes read since its last call. Raises UserError naming file and byte, line or row of invalid text.
    """
    return _gather(fragment for path in files for fragment in _read_file(path, text_field, on_bytes or _ignore))


def check_file(path: Path, *, text_field: str = "text") -> None:
    """Read all of `path`. Raises UserError if `read_corpus` cannot read it, or if it has no text."""
    if not path.stat().st_size:
        raise _refused(path, "the file is empty (0 bytes)", "give one with text")
    if not sum(1 for _ in read_corpus([path], text_field=text_field)):
        raise _refused(path, "the file holds no text, only blanks", "give one with text")


def _refused(path: Path, reason: str, remedy: str = "") -> UserError:
    """The error of a file, for which a surface may have another name: its source."""
    return UserError(rule="{reason}", remedy=remedy, reason=reason).spelled(source=str(path))


def _ignore(num_bytes: int) -> None:
    pass


def _read_file(path: Path, text_field: str, on_bytes: Callable[[int], None]) -> Iterator[str]:
    kind, compression = file_format(path)
    if kind == ".parquet":
        texts = _parquet_texts(path, text_field, on_bytes)
    elif kind == ".jsonl":
        texts = _jsonl_texts(path, _decompressed(path, compression, on_bytes), text_field)
    else:
        yield from _close_documents(_decode(path, _decompressed(path, compression, on_bytes)))
        return
    for text in texts:
        yield from _close_documents(text[i : i + BLOCK_BYTES] for i in range(0, len(text), BLOCK_BYTES))


# Bytes


def _decompressed(path: Path, compression: str, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    """The content of `path` in blocks. Raises UserError for damaged compression."""
    try:
        with path.open("rb") as handle:
            blocks = _unzstd(handle) if compression == ".zst" else _ungzip(handle) if compression else _blocks(handle)
            position = 0
            for block in blocks:
                on_bytes(handle.tell() - position)
                position = handle.tell()
                yield block
    except FileNotFoundError:
        raise _refused(path, "the file is missing") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _refused(path, f"the compressed data is damaged ({error})", "get the file again") from None


def _blocks(handle: IO[bytes]) -> Iterator[bytes]:
    while block := handle.read(BLOCK_BYTES):
        yield block


def _ungzip(handle: IO[bytes]) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=handle) as unzipped:
        while block := unzipped.read(BLOCK_BYTES):
            yield block


def _unzstd(handle: IO[bytes]) -> Iterator[bytes]:
    with needs_extra("a .zst file"):
        import zstandard

    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    open_frame = False
    try:
        # Data may expand a thousandfold: small reads keep the output small.
        while packed := handle.read(4096):
            while packed:
                block = frame.decompress(packed)
                open_frame, packed = not frame.eof, frame.unused_data
                if block:
                    yield block
                if frame.eof:
                    frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if open_frame:
        raise EOFError("it ends early")


def _check_no_nul(path: Path, block: bytes, offset: int) -> None:
    at = block.find(0)
    if at >= 0:
        raise _refused(path, f"byte {offset + at} is NUL, so this is a binary file", "give text in UTF-8")


def _decode(path: Path, blocks: Iterable[bytes]) -> Iterator[str]:
    """The text of `blocks`. Raises UserError with the byte offset (after decompression) of invalid UTF-8."""
    rest, offset = b"", 0
    for block in blocks:
        _check_no_nul(path, block, offset + len(rest))
        if offset == 0 and not rest:
            bare = block.removeprefix(codecs.BOM_UTF8)
            offset, block = len(block) - len(bare), bare
        text, used = _utf8(path, rest + block, offset, final=False)
        rest, offset = (rest + block)[used:], offset + used
        yield text
    _utf8(path, rest, offset, final=True)


def _utf8(path: Path, data: bytes, offset: int, *, final: bool) -> tuple[str, int]:
    try:
        return codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise _refused(path, f"byte {at} (0x{data[error.start]:02X}) is not valid UTF-8", "convert the file") from None


# Records


def _jsonl_texts(path: Path, blocks: Iterable[bytes], text_field: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(_lines(blocks, path), start=1):
        _check_no_nul(path, line, offset)
        bare = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        text, _ = _utf8(path, bare, offset + len(line) - len(bare), final=True)
        offset += len(line)
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _refused(path, f"line {number}: not valid JSON ({error})") from None
        yield _text_of(record, text_field, path, number)


def _lines(blocks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """Lines with their line ends; the parts of a long one are joined once. Raises UserError for a too long one."""
    parts: list[bytes] = []
    number, size = 1, 0
    for block in blocks:
        for line in io.BytesIO(block):
            parts.append(line)
            size += len(line)
            if size > LONGEST_LINE_BYTES:
                raise _refused(path, f"line {number}: longer than {LONGEST_LINE_BYTES:,} bytes", "split it")
            if line.endswith(b"\n"):
                yield b"".join(parts)
                parts = []
                number, size = number + 1, 0
    if parts:
        yield b"".join(parts)


def _text_of(record: Any, text_field: str, path: Path, line: int) -> str:
    if not isinstance(record, dict):
        raise _refused(path, f"line {line}: not a JSON object but {type(record).__name__}", "each line must be one")
    if text_field not in record:
        fields = ", ".join(map(repr, record)) or "none"
        raise _refused(path, f"line {line}: no field {text_field!r} (it has {fields})", "set {text_field}")
    text = record[text_field]
    if not isinstance(text, str):
        raise _refused(path, f"line {line}: field {text_field!r} is not a text but {type(text).__name__}")
    try:
        check_unicode(text)
    except UserError as error:
        raise _refused(path, f"line {line}: field {text_field!r}: {error}") from None
    return text


def _parquet_texts(path: Path, text_field: str, on_bytes: Callable[[int], None]) -> Iterator[str]:
    with needs_extra("a .parquet file"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    if not path.exists():
        raise _refused(path, "the file is missing")
    try:
        with path.open("rb") as handle, pq.ParquetFile(handle) as table:
            _check_column(path, table.schema_arrow, text_field)
            row = 0
            for batch in table.iter_batches(batch_size=256, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        raise _refused(path, f"row {row}: column {text_field!r} is null", "remove the row")
                    yield text
    except UnicodeDecodeError as error:
        reason = f"column {text_field!r} holds text that is not valid UTF-8 ({error.reason})"
        raise _refused(path, reason) from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise _refused(path, f"not a readable .parquet file ({reason})") from None
    on_bytes(path.stat().st_size)


def _check_column(path: Path, schema: Any, text_field: str) -> None:
    import pyarrow as pa

    if text_field not in schema.names:
        columns = ", ".join(map(repr, schema.names))
        raise _refused(path, f"no column {text_field!r} (it has {columns})", "set {text_field}")
    kind = schema.field(text_field).type
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(values) or pa.types.is_large_string(values)):
        raise _refused(path, f"column {text_field!r} is not text but {kind}", "set {text_field}")


# Documents


def _close_documents(blocks: Iterable[str]) -> Iterator[str]:
    """The documents in the text of `blocks`, each followed by `<|endoftext|>`, in fragments."""
    rest = ""
    begun = False  # a fragment of the open document was yielded
    own_line = False  # the open document follows a separator on a line of its own
    at_start = True
    for block in blocks:
        *documents, rest = (rest + block).split(END_OF_TEXT)
        for document in documents:
            text = document if begun else _without_line_end(document, own_line)
            if begun or (text and not text.isspace()):
                yield text + END_OF_TEXT
            own_line = document.endswith("\n") or (at_start and not document)
            begun = at_start = False
        # The last characters may be the start of a separator: do not cut there or treat it as a word.
        cut = find_cut(rest, len(rest) - len(END_OF_TEXT) - 1) if len(rest) > FRAGMENT_CHARACTERS else 0
        # Only blanks so far: this may become an empty document, which is dropped.
        if cut and (begun or cut >= UNBROKEN_CHARACTERS or not rest[:cut].isspace()):
            yield rest[:cut] if begun else _without_line_end(rest[:cut], own_line)
            rest, begun, at_start = rest[cut:], True, False
    text = rest if begun else _without_line_end(rest, own_line)
    if begun or (text and not text.isspace()):
        yield text + END_OF_TEXT


def _without_line_end(document: str, own_line: bool) -> str:
    if not own_line:
        return document
    return document.removeprefix("\r\n") if document.startswith("\r\n") else document.removeprefix("\n")


def find_cut(text: str, limit: int) -> int:
    """The last place up to `limit` where the two halves have the ids of the whole; 0 where there is none.

    GPT-2's pattern starts a new piece at the last blank before a word, and at punctuation after a letter or a digit:
    https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    # Text further back was searched in an earlier call.
    for at in range(min(limit, len(text) - 2), max(0, limit - 2 * BLOCK_BYTES), -1):
        if text[at] in " \n\t\r" and not text[at + 1].isspace():
            return at
        if text[at] in _PUNCTUATION and text[at - 1].isalnum():
            return at
    return limit if limit >= UNBROKEN_CHARACTERS else 0


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
