"""Glob patterns as in a shell. Unlike Python's `glob`, `**` does not follow links, so that link cycles end."""

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def matching_files(pattern: str) -> list[Path]:
    """The matching files, sorted. Names that begin with a dot match only a pattern that begins with one."""
    parts = Path(pattern).parts
    first = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    wanted = [part for place, part in enumerate(parts) if place >= first and (part != "**" or parts[place - 1] != "**")]
    return sorted({path for path in _matching(Path(*parts[:first]), wanted) if path.is_file()})


def _matching(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        if rest:
            yield from _matching(folder, rest)
        for entry in _entries(folder, "*"):
            if entry.is_dir() and not entry.is_symlink():
                yield from _matching(entry, parts)
            elif not rest:
                yield entry
    elif glob.has_magic(part):
        for entry in _entries(folder, part):
            if not rest or entry.is_dir():
                yield from _matching(entry, rest)
    else:
        yield from _matching(folder / part, rest)


def _entries(folder: Path, part: str) -> list[Path]:
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except (OSError, ValueError):
        return []
    hidden = part.startswith(".")
    return [folder / name for name in fnmatch.filter(names, part) if hidden or not name.startswith(".")]
