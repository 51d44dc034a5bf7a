"""The text of a file in blocks: decompressed, and decoded from UTF-8, or UTF-16 or UTF-32 with a byte order mark."""

import codecs
import gzip
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from gpt2core.errors import UserError
from gpt2core.extras import needs_extra
from gpt2core.storage.bounds import Budget, check_regular

BLOCK_BYTES = 1 << 17
MOST_EXPANSION, FREE_BYTES = 1000, 1 << 26  # real text shrinks to a tenth, logs to a hundredth
# Longer marks first: UTF-16's is the start of UTF-32's.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def refused(path: Path, reason: str, remedy: str = "") -> UserError:
    """The error of a file, for which a surface may have another name: its source."""
    return UserError(rule="{reason}", remedy=remedy, reason=reason).spelled(source=str(path))


def decompressed(path: Path, compression: str, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    """The content of `path` in blocks. Raises UserError for damaged compression, and for what expands without end."""
    check_regular(path)
    try:
        budget = expansion_budget(path)
        with path.open("rb") as handle:
            blocks = _unzstd(handle) if compression == ".zst" else _ungzip(handle) if compression else _blocks(handle)
            position = 0
            for block in blocks:
                on_bytes(handle.tell() - position)
                position = handle.tell()
                if compression:
                    budget.take(len(block))
                # A few compressed bytes give a large block, and what is made of it may be many times as large.
                for start in range(0, len(block), BLOCK_BYTES):
                    yield block[start : start + BLOCK_BYTES]
    except FileNotFoundError:
        raise refused(path, "the file is missing") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise refused(path, f"the compressed data is damaged ({error})", "get the file again") from None


def expansion_budget(path: Path) -> Budget:
    """What the text in a file may come to: a few compressed bytes can expand to an endless one."""
    most = FREE_BYTES + MOST_EXPANSION * path.stat().st_size
    return Budget(path, most, "bytes of text", "unpack it and give the file without compression")


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


def decoded(path: Path, blocks: Iterable[bytes]) -> Iterator[str]:
    """The text of `blocks`, without a byte order mark.

    Raises UserError with the place, in bytes after decompression, of what is invalid or NUL.
    """
    blocks = iter(blocks)
    head = b""
    while len(head) < 4 and (block := next(blocks, b"")):  # the longest mark
        head += block
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "UTF-8")
    bare = head.removeprefix(codecs.BOM_UTF8)
    offset, head = len(head) - len(bare), bare
    decoder = codecs.getincrementaldecoder(encoding)()
    for block in itertools.chain((head,), blocks, (b"",)):
        if encoding == "UTF-8" and (at := block.find(0)) >= 0:
            raise refused(path, f"byte {offset + at} is NUL, so this is a binary file", "give text in UTF-8")
        kept = len(decoder.getstate()[0])  # bytes of a character that the last block cut in two
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at, byte = offset - kept + error.start, error.object[error.start]
            raise refused(path, f"byte {at} (0x{byte:02X}) is not valid {encoding}", "convert the file") from None
        offset += len(block)
        if "\0" in text:
            raise refused(path, f"it has a NUL before byte {offset}, so this is a binary file", "give text")
        yield text


def lines(path: Path, blocks: Iterable[str], longest: int) -> Iterator[str]:
    """Lines without their line ends. Raises UserError for one of more than `longest` characters."""
    parts: list[str] = []
    number, size = 1, 0
    for block in blocks:
        *whole, rest = block.split("\n")  # a text may hold other characters at which `splitlines` splits
        for end in whole:
            line, parts = "".join((*parts, end)).removesuffix("\r"), []
            yield line
            number, size = number + 1, 0
        parts.append(rest)
        size += len(rest)
        if size > longest:
            raise refused(path, f"line {number}: longer than {longest:,} characters", "split it")
    if size:
        yield "".join(parts)
