"""`python -m gpt2ops.pipeline.lockfile`: mends what a killed DVC left half-written of its own files.

DVC 3.67 writes dvc.lock and .dvc/tmp/rwlock in place: killed in that moment, it refuses to work from then on. Nothing
is lost with them, for every finished stage is in its run cache.
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

from gpt2ops import paths
from gpt2ops.process.startup import end_imports

RWLOCK = Path(".dvc/tmp/rwlock")
LOCK = Path(".dvc/tmp/lock")  # DVC holds it while it writes


def mend(root: Path) -> list[str]:
    """Set aside a dvc.lock and remove a list of locks that cannot be read; a line on each."""
    with _dvc_is_away(root) as away:
        return [*_mend_lock_file(root / paths.DVC_LOCK), *_mend_rwlock(root / RWLOCK)] if away else []


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
        yield f"dvc.lock was cut off by a kill and is now {aside.name}; finished stages come back from DVC's cache"


def _mend_rwlock(file: Path) -> Iterator[str]:
    if not file.exists():
        return
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        file.unlink()
        yield f"{RWLOCK} was cut off by a kill and is removed"


@contextmanager
def _dvc_is_away(root: Path) -> Iterator[bool]:
    """Whether no DVC is writing in `root`, nor begins to meanwhile."""
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
