"""`python -m gpt2ops.pipeline.lockfile`: repairs DVC's own files after DVC was killed while writing them.

DVC 3.67 writes dvc.lock and .dvc/tmp/rwlock in place, and refuses to run where one is truncated. Removing them loses
nothing: every finished stage is in DVC's run cache.
"""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
import zc.lockfile

from gpt2ops.pipeline import paths
from gpt2ops.process.startup import end_imports

RWLOCK = Path(".dvc/tmp/rwlock")
LOCK = Path(".dvc/tmp/lock")  # DVC holds it while it writes


def mend(root: Path) -> list[str]:
    """Rename an unreadable dvc.lock and remove an unreadable rwlock, unless DVC is running; returns a line for each."""
    with _dvc_lock(root) as held:
        return [*_mend_lock_file(root / paths.DVC_LOCK), *_mend_rwlock(root / RWLOCK)] if held else []


def read_stages(file: Path) -> dict[str, dict[str, Any]]:
    """The stages of a dvc.yaml or dvc.lock by name. Raises ValueError where the file is damaged."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        raise ValueError("it has no stages")
    return dict(content["stages"])


def _mend_lock_file(file: Path) -> Iterator[str]:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if not file.exists():
        return
    try:
        COMPILED_LOCKFILE_SCHEMA({"schema": "2.0", "stages": read_stages(file)})
    except (ValueError, Invalid):
        aside = file.with_name(f"{file.name}.damaged")
        file.replace(aside)
        yield f"dvc.lock was truncated by a kill and is now {aside.name}; DVC restores finished stages from its cache"


def _mend_rwlock(file: Path) -> Iterator[str]:
    if not file.exists():
        return
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        file.unlink()
        yield f"{RWLOCK} was truncated by a kill and is removed"


@contextmanager
def _dvc_lock(root: Path) -> Iterator[bool]:
    """Hold DVC's lock; False where another process holds it, or `root` has no DVC project."""
    if not (root / LOCK).parent.is_dir():
        yield False
        return
    try:
        lock = zc.lockfile.LockFile(str(root / LOCK))
    except zc.lockfile.LockError:
        yield False
        return
    try:
        yield True
    finally:
        lock.close()


if __name__ == "__main__":
    end_imports()
    for line in mend(Path.cwd()):
        print(line, file=sys.stderr)
