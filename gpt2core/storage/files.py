"""Writing files and directories so that a reader never sees half of one, and reading what others wrote."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gpt2core.errors import UserError
from gpt2core.storage.bounds import check_regular

_DVC_CACHE = re.compile(r".*/files/md5/[0-9a-f]{2}/[0-9a-f]{30}")  # with `dvc config cache.type symlink`


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a sibling path to write to; it takes the name `path` only when the block succeeds.

    Raises UserError for a device, a pipe or a socket, such as /dev/null, which it would replace by a file.
    """
    check_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb") as handle:
            os.fsync(handle.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_together(contents: Mapping[Path, str | bytes]) -> None:
    """Write several files, or none of them where the disk does not take one."""
    with ExitStack() as files:
        for path, content in contents.items():
            partial = files.enter_context(atomic_path(path))
            partial.write_bytes(content.encode() if isinstance(content, str) else content)


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
    """Rename `source` to `target`; the earlier `target` is removed after the rename.

    A kill between its two renames leaves the earlier directory as `.NAME.old`.
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
    """Remove a directory, or a link but not its target."""
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


def json_text(value: Any) -> str:
    """`value` as indented JSON. Raises ValueError for NaN and infinity, which JSON has not."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `json_text` has it."""
    write_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises ValueError where there is none, OSError where there is no file."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError("it is no file, but a pipe or a device")  # which would keep its reader waiting
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def inside(file: Path, directory: Path) -> Path:
    """`file` of `directory`, links followed; one that is not there is left to who opens it.

    Raises UserError for a link that leads out of the directory, other than into the cache of contents that the hub's
    client or DVC keeps files in, and for what is no regular file: a pipe would keep its reader waiting.
    """
    try:
        target, home = file.resolve(), directory.resolve()
        blobs = (home.parent.parent / "blobs").resolve() if home.parent.name == "snapshots" else None
    except (RuntimeError, OSError):
        raise UserError(f"{file} is a link that leads to itself; put the file itself there.") from None
    except ValueError:  # a NUL in a name that an index or a manifest lists
        raise UserError(f"{file} is no name that a file can have; fetch or save it again.") from None
    kept = target.parent == blobs or _DVC_CACHE.fullmatch(target.as_posix())
    if not kept and not target.is_relative_to(home):
        raise UserError(f"{file} is a link that leads out of {directory}; put the file itself there.")
    if target.exists() and not target.is_file():
        raise UserError(f"{file} is no file; put the file itself there.")
    return target


def with_home(name: str | Path) -> Path:
    """The path `name` with `~` as the home folder; a `~` of nobody stands for itself."""
    return Path(os.path.expanduser(name))  # noqa: PTH111  # pathlib's raises where there is no such home


def sha256_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
