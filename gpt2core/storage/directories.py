"""Writing a directory so that a reader never sees half of one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path`; it takes the place of `path` only when the block succeeds."""
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        replace_directory(partial, path)
    finally:
        _remove(partial)


def replace_directory(source: Path, target: Path) -> None:
    """Give `source` the name `target`; what had that name goes once the new one is there.

    Cut between its two renames, it leaves the earlier directory as `.NAME.old`.
    """
    old = target.with_name(f".{target.name}.old")
    _remove(old)
    replaces = os.path.lexists(target)
    if replaces:
        target.rename(old)
    try:
        source.rename(target)
    except OSError:
        if replaces:
            old.rename(target)
        raise
    if os.name == "posix":  # a rename lasts once its directory is flushed
        _flush(target.parent)
    _remove(old)


def _remove(path: Path) -> None:
    """A link goes, and what it leads to stays."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
