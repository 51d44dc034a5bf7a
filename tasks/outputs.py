"""A stage's earlier outputs, brought back from DVC's cache after it failed: DVC removes them before it starts one."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tasks import paths


def restore_outputs(stage: str) -> list[Path]:
    """Copy what dvc.lock lists of `stage`, and is not there, out of the cache; returns what came back.

    An output that the cache does not hold as a whole, or that the disk cannot take, stays away.
    """
    try:
        lock = yaml.safe_load(paths.DVC_LOCK.read_text(encoding="utf-8"))
        outputs = {Path(output["path"]): output for output in lock["stages"][stage]["outs"]}
    except (OSError, KeyError, TypeError, ValueError, RecursionError, yaml.YAMLError):
        return []
    missing = [path for path in outputs if not path.exists()]
    cache = cache_directory() if missing else None
    return [path for path in missing if cache is not None and restore(outputs[path], cache)]


def restore(output: dict[str, Any], cache: Path) -> bool:
    target = Path(output["path"])
    try:
        pairs = list(cached_files(output["md5"], target, cache))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    if not all(source.is_file() for source, _ in pairs):
        return False
    try:
        for source, path in pairs:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
    except OSError:  # a full disk is what the stage itself has reported
        shutil.rmtree(target, ignore_errors=True)
        target.unlink(missing_ok=True)
        return False
    return True


def cached_files(md5: str, target: Path, cache: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs of a file in the cache and the path it belongs to; a folder is a JSON list of its files."""
    listing = cache / "files" / "md5" / md5[:2] / md5[2:]
    if not md5.endswith(".dir"):
        yield listing, target
        return
    for entry in json.loads(listing.read_text(encoding="utf-8")):
        yield cache / "files" / "md5" / entry["md5"][:2] / entry["md5"][2:], target / entry["relpath"]


def cache_directory(project: Path = Path()) -> Path | None:
    """DVC's cache of the project, wherever its configuration puts it; None where there is no project."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    found = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    return project / found.stdout.strip() if found.returncode == 0 else None
