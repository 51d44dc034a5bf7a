"""An array in a file, read by position.

Not a memory map: where a file is cut short while it is in use, a map gives zeros or ends the process by SIGBUS.
"""

import threading
import weakref
from pathlib import Path

import numpy as np

from gpt2core.errors import UserError


class ArrayFile:
    """A file of numbers of one type without a header. It stays the file that it was when another takes its name."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        """Opens the file. Raises OSError where it cannot be opened."""
        self.path, self._dtype = path, dtype
        self._handle = path.open("rb", buffering=0)
        self._reading = threading.Lock()  # between the move to a place and the reading there
        weakref.finalize(self, self._handle.close)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Numbers `start` to `stop` (exclusive), shape (stop - start,).

        Raises UserError where the file ends before `stop`, OSError, with the file's name, where it cannot be read.
        """
        found = np.empty(stop - start, self._dtype)
        free = found.data.cast("B") if len(found) else memoryview(b"")
        try:
            with self._reading:
                self._handle.seek(start * self._dtype.itemsize)
                while free and (count := self._handle.readinto(free)):
                    free = free[count:]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if free:
            raise UserError(f"{self.path} was cut short while it was in use; tokenize the corpus again.")
        return found
