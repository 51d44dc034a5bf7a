"""The items of a JSON array, one after the other: a file of any size is read in memory for its longest item."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt2core.data.text_files import refused

_BLANKS = re.compile(r"[ \t\n\r]*")
_AFTER_A_VALUE = frozenset(",] \t\n\r")
_decode = json.JSONDecoder().raw_decode


def array_items(path: Path, blocks: Iterable[str], longest: int) -> Iterator[Any]:
    """The items of the array in the text of `blocks`, which starts with `[` after blanks.

    Raises UserError for invalid JSON, and for an item of more than `longest` characters.
    """
    source = _Text(path, iter(blocks), longest)
    source.expect("[")
    if source.next_character() == "]":
        source.expect("]")
    else:
        while True:
            yield source.item()
            if source.next_character() != ",":
                source.expect("]")
                break
            source.expect(",")
    if character := source.next_character():
        raise refused(path, f"not valid JSON ({character!r} after the end of the array)")


class _Text:
    """What is read of a text and not yet taken."""

    def __init__(self, path: Path, blocks: Iterator[str], longest: int) -> None:
        self._path, self._blocks, self._longest = path, blocks, longest
        self._text, self._at, self._number = "", 0, 1

    def _more(self, size: int) -> bool:
        """Read until `size` characters more are there; False at the end of the text."""
        parts = [self._text[self._at :]]
        wanted = len(parts[0]) + size
        have = len(parts[0])
        while have < wanted and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            have += len(block)
        grown = have > len(parts[0])
        self._text, self._at = "".join(parts), 0
        return grown

    def next_character(self) -> str:
        """The first that is no blank, empty at the end."""
        while True:
            match = _BLANKS.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(1):
                return ""

    def expect(self, character: str) -> None:
        found = self.next_character()
        if found != character:
            what = repr(found) if found else "the end of the file"
            raise refused(self._path, f"record {self._number}: not valid JSON ({what} where {character!r} must be)")
        self._at += 1

    def item(self) -> Any:
        """One value. The text doubles until it is whole, so that the work is in proportion to its length."""
        self.next_character()
        while True:
            problem = ""
            try:
                value, end = _decode(self._text, self._at)
                if self._text[end : end + 1] in _AFTER_A_VALUE:  # else a number may go on
                    self._at, self._number = end, self._number + 1
                    return value
            except (ValueError, RecursionError) as error:
                problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            have = len(self._text) - self._at
            if have > self._longest:
                raise refused(
                    self._path, f"record {self._number}: invalid, or longer than {self._longest:,} characters"
                )
            if not self._more(max(have, 1)):
                raise refused(self._path, f"record {self._number}: not valid JSON ({problem or 'it ends early'})")
