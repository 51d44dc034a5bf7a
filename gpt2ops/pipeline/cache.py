"""DVC's cache: where it is, and restoring a failed stage's earlier outputs, which DVC removes before a stage starts."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from gpt2core.errors import UserError
from gpt2ops.pipeline import paths

_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass
class Restored:
    """`back` is in place again; `kept` is complete in the cache, but could not be written now."""

    back: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)


def restore_outputs(stage: str) -> Restored:
    """Copy the missing outputs of `stage` in dvc.lock out of the cache."""
    restored = Restored()
    try:
        lock = yaml.safe_load(paths.DVC_LOCK.read_text(encoding="utf-8"))
        outputs = {Path(output["path"]): output for output in lock["stages"][stage]["outs"]}
    except (OSError, KeyError, TypeError, ValueError, RecursionError, yaml.YAMLError):
        return restored
    missing = [path for path in outputs if not path.exists()]
    try:
        cache = cache_directory() if missing else Path()
    except UserError:
        return restored
    for path in missing:
        try:
            if restore(outputs[path], cache):
                restored.back.append(path)
        except OSError:  # a full disk is what the stage itself has reported
            restored.kept.append(path)
    return restored


def restore(output: dict[str, Any], cache: Path) -> bool:
    """Copy an output of dvc.lock out of the cache; False where the cache does not have all of it.

    Raises OSError, with no partial copy left, where it cannot be written. A name in the lock file or the cache that
    leads out of the output's folder is not restored.
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
    """Pairs of a file in the cache and its path in the project. The cache stores a folder as a JSON list of files."""
    listing = _object(cache, md5)
    if not md5.endswith(".dir"):
        yield listing, target
        return
    for entry in json.loads(listing.read_text(encoding="utf-8")):
        name = PurePosixPath(entry["relpath"])
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(name)
        yield _object(cache, entry["md5"]), target / entry["relpath"]


def cached_object(project: Path, md5: str) -> Path:
    """DVC's copy of a file or a folder's list. Raises ValueError for no MD5, UserError as `dvc_settings`."""
    return _object(cache_directory(project), md5)


def _object(cache: Path, md5: str) -> Path:
    if not _MD5.fullmatch(md5):
        raise ValueError(md5)
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def dvc_settings(project: Path = Path()) -> Mapping[str, Any]:
    """DVC's settings for `project`: the project's own over the user's and the system's, paths made absolute.

    Raises UserError outside a DVC project, and where DVC cannot read them.
    """
    from dvc.config import Config, ConfigError

    project = project.resolve()
    folder = next((parent / ".dvc" for parent in (project, *project.parents) if (parent / ".dvc").is_dir()), None)
    if folder is None:
        raise UserError(f"{project} is no DVC project; run `dvc init` (outside git `dvc init --no-scm`).")
    try:
        settings: Mapping[str, Any] = Config(folder)
        return {**settings, "cache": {"dir": str(folder / "cache"), **settings["cache"]}}
    except (ConfigError, OSError, ValueError) as error:
        raise UserError(f"DVC's settings in {folder} cannot be read ({error}); correct them.") from None


def cache_directory(project: Path = Path()) -> Path:
    """DVC's cache of `project`, absolute. Raises UserError as `dvc_settings`."""
    return Path(dvc_settings(project)["cache"]["dir"])
