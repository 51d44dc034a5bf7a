"""Where the documents of a text begin and end; each is followed by `<|endoftext|>`, in fragments of bounded length."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpt2core.data.text_files import BLOCK_BYTES, lines, refused
from gpt2core.tokenizer import END_OF_TEXT

DOCUMENTS = ("separator", "line", "paragraph", "file")
FRAGMENT_CHARACTERS = 1 << 17
# A text without a word boundary in this many characters is cut anywhere, so that memory stays bounded.
UNBROKEN_CHARACTERS = 1 << 22
LONGEST_LINE = 1 << 28
# A blank before a word; or what to the tokenizer's pattern is neither letter, digit nor blank, nor the start of a
# contraction, after a letter or a digit.
_CUTS = re.compile(r"[ \n\t\r](?=\S)|(?<=[^\W_])[.,;:!?\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]")


def documents_of(path: Path, blocks: Iterable[str], documents: str) -> Iterator[str]:
    """The documents of a plain text, divided as `documents`, one of DOCUMENTS, says. Blank ones are dropped."""
    if documents == "line":
        for line in lines(path, blocks, LONGEST_LINE):
            yield from close_text(line)
    elif documents == "paragraph":
        for paragraph in _paragraphs(lines(path, blocks, LONGEST_LINE)):
            yield from close_text(paragraph)
    else:
        yield from close_documents(_without_separators(path, blocks) if documents == "file" else blocks)


def close_text(text: str) -> Iterator[str]:
    """As `close_documents`, of a text in memory."""
    return close_documents(text[i : i + BLOCK_BYTES] for i in range(0, len(text), BLOCK_BYTES))


def _paragraphs(found: Iterable[str]) -> Iterator[str]:
    """Lines between blank ones, joined by line ends."""
    paragraph: list[str] = []
    for line in found:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    yield "\n".join(paragraph)


def _without_separators(path: Path, blocks: Iterable[str]) -> Iterator[str]:
    """Raises UserError for `<|endoftext|>`, which ends a document within the file."""
    end = ""
    for block in blocks:
        if END_OF_TEXT in end + block:
            raise refused(path, f"it has {END_OF_TEXT}, which ends a document", "set {documents} to separator")
        end = (end + block)[-len(END_OF_TEXT) :]
        yield block


def close_documents(blocks: Iterable[str]) -> Iterator[str]:
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
    stop = min(limit, len(text) - 2)
    # Text further back than the longer of the two was searched in an earlier call.
    for size in (1024, 2 * BLOCK_BYTES):
        places = _CUTS.finditer(text, max(1, limit - size), max(0, stop + 2))
        if cut := deque((match.start() for match in places if match.start() <= stop), maxlen=1):
            return cut[0]
    return limit if limit >= UNBROKEN_CHARACTERS else 0
