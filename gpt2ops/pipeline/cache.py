"""A stage's earlier outputs, brought back from DVC's cache after it failed: DVC removes them before it starts one."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from gpt2ops import paths

_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass
class Restored:
    """`back` is in place again; `kept` is whole in the cache, and the disk does not take it now."""

    back: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)


def restore_outputs(stage: str) -> Restored:
    """Copy what dvc.lock lists of `stage`, and is not there, out of the cache."""
    restored = Restored()
    try:
        lock = yaml.safe_load(paths.DVC_LOCK.read_text(encoding="utf-8"))
        outputs = {Path(output["path"]): output for output in lock["stages"][stage]["outs"]}
    except (OSError, KeyError, TypeError, ValueError, RecursionError, yaml.YAMLError):
        return restored
    missing = [path for path in outputs if not path.exists()]
    cache = cache_directory() if missing else None
    if cache is None:
        return restored
    for path in missing:
        try:
            if restore(outputs[path], cache):
                restored.back.append(path)
        except OSError:  # a full disk is what the stage itself has reported
            restored.kept.append(path)
    return restored


def restore(output: dict[str, Any], cache: Path) -> bool:
    """Whether the cache held it as a whole. Raises OSError, with nothing left behind, where the disk does not take it.

    What the lock file or the cache calls by a name that leads out of its folder is not restored.
    """
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
    except OSError:
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)
        raise
    return True


def cached_files(md5: str, target: Path, cache: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs of a file in the cache and the path it belongs to; a folder is a JSON list of its files."""
    if not _MD5.fullmatch(md5):
        raise ValueError(md5)
    listing = cache / "files" / "md5" / md5[:2] / md5[2:]
    if not md5.endswith(".dir"):
        yield listing, target
        return
    for entry in json.loads(listing.read_text(encoding="utf-8")):
        name = PurePosixPath(entry["relpath"])
        if name.is_absolute() or ".." in name.parts or not _MD5.fullmatch(entry["md5"]):
            raise ValueError(name)
        yield cache / "files" / "md5" / entry["md5"][:2] / entry["md5"][2:], target / entry["relpath"]


def cache_directory(project: Path = Path()) -> Path | None:
    """DVC's cache of the project, wherever its configuration puts it; None where there is no project."""
    command = [sys.executable, "-P", "-m", "dvc", "cache", "dir"]  # -P: nothing in that folder is imported
    found = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    return project / found.stdout.strip() if found.returncode == 0 else None
