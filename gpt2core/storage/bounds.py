"""Limits of what a reader takes in, so that a small input cannot take the machine's memory.

A format lets a file claim more than it has: one shard under five hundred names, one text repeated in every row. What is
claimed is added up before anything is allocated.
"""

import os
import stat
from pathlib import Path

from gpt2core.errors import UserError

MOST_WHOLE_BYTES = 64 * 2**20  # of a file that is read as a whole: settings, an index, prompts
_PIECE_BYTES = 2**20


class Budget:
    """What an input may claim in all."""

    def __init__(self, path: Path, most: int, what: str, remedy: str = "copy or download it again") -> None:
        """`what` completes the sentence "PATH claims more WHAT than N"."""
        self._path, self._most, self._left, self._what, self._remedy = path, most, most, what, remedy

    def take(self, count: int) -> None:
        """Raises UserError where less than `count` is left."""
        self._left -= count
        if self._left < 0:
            raise UserError(f"{self._path} claims more {self._what} than {self._most:,}; {self._remedy}.")


def check_regular(path: Path, name: str | None = None) -> None:
    """Raises UserError for a device, a pipe or a socket, which may never end or keep its reader waiting.

    `name` is what the error calls it, such as a flag with its value. What is not there is left to who opens it.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  # a name with a NUL raises ValueError either way
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{name or path} is no file, but a device, a pipe or a socket; name a file.")


def read_whole(path: Path, most: int = MOST_WHOLE_BYTES, name: str | None = None) -> bytes:
    """The content of a file of at most `most` bytes. Raises UserError for a larger one, and for what is no file."""
    check_regular(path, name)
    pieces, size = [], 0
    with path.open("rb") as handle:
        while piece := handle.read(_PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise UserError(f"{name or path} has more than {most:,} bytes, too many to be read as a whole.")
    return b"".join(pieces)
