"""Temporary files where `gpt2 gc` finds what a kill leaves of them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2ops.pipeline import paths

_VARIABLE = "TMPDIR"  # read by the tempfile of child processes


@contextmanager
def own_temporary_files(name: str) -> Iterator[Path]:
    """Keep temporary files of this process and its children, libraries' too, in the project's `logs/` until the end.

    The folder is named as an interrupted write of this process.
    """
    folder = (paths.LOGS / f".{name}.{os.getpid()}.partial").absolute()
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process that had the same id
    folder.mkdir(parents=True)
    before, variable = tempfile.tempdir, os.environ.get(_VARIABLE)
    tempfile.tempdir = os.environ[_VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = variable
        shutil.rmtree(folder, ignore_errors=True)
