"""The workspace of a flow run: `workspaces/<flow run id>/`, which shares only DVC's cache with the project.

In a git repository it is a worktree of HEAD with the uncommitted changes, elsewhere a copy.
"""

import configparser
import glob
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gpt2core.errors import UserError
from gpt2core.storage.files import atomic_path, write_text
from gpt2ops.params.editing import merged, with_values
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.cache import cache_directory
from gpt2ops.process.git import git

WORKSPACES = paths.WORKSPACES

# Results, caches and files that a run does not read; a worktree has no ignored files in any case.
_NOT_COPIED = frozenset(
    {".git", ".dvc/cache", ".dvc/tmp", ".dvc/config.local", "models", "logs", WORKSPACES.as_posix(), "node_modules"}
    | {path.as_posix() for path in (paths.RAW, paths.TOKENS, paths.PLOTS, paths.MLRUNS)}
)
_NOT_COPIED_ANYWHERE = frozenset({"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"})

# Keys that may name a local file or folder, which a workspace need not have.
_LOCAL_NAMES = (("data", "source"), ("data", "watch"), ("model", "init"))


def open_workspace(root: Path, name: str, overrides: Mapping[str, Any]) -> Path:
    """The workspace `name` of the project at `root`: the existing one, or a new one with `overrides` in params.yaml.

    A retry thus finds its checkpoints. Raises UserError where git or DVC fail, OSError for a full disk.
    """
    root = root.resolve()
    workspace = root / WORKSPACES / name
    ready = workspace / ".dvc" / "config.local"
    if ready.is_file():
        return workspace
    remove_workspace(root, workspace)
    workspace.parent.mkdir(exist_ok=True)
    if is_git_root(root):
        _add_worktree(root, workspace)
    else:
        copy_project(root, workspace)
    write_overrides(root, workspace, overrides)
    # Last: its presence means that the workspace is complete.
    _write_dvc_config(ready, cache=cache_directory(root))
    return workspace


def remove_workspace(root: Path, workspace: Path) -> None:
    """Delete the folder, if any, and git's record of it."""
    if workspace.exists():
        _make_writable(workspace)
        shutil.rmtree(workspace)
    if is_git_root(root):
        git(root, "worktree", "unlock", str(workspace))  # git locks one that it was killed in the middle of
        _git(root, "worktree", "prune")


def is_git_root(root: Path) -> bool:
    """Whether `root` is the top of a git repository that has a commit."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return False
    return git(root, "rev-parse", "--verify", "-q", "HEAD").returncode == 0


def write_overrides(root: Path, workspace: Path, overrides: Mapping[str, Any]) -> None:
    """Set `overrides` in the workspace's params.yaml, comments kept.

    Names of local files that are found only in `root` become absolute.
    """
    file = workspace / paths.PARAMS
    text = file.read_text(encoding="utf-8")
    changes = merged(overrides, _absolute_names(root, workspace, merged(yaml.safe_load(text) or {}, overrides)))
    if changes:
        write_text(file, with_values(text, changes))


def _absolute_names(root: Path, workspace: Path, values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for section, key in _LOCAL_NAMES:
        name = (values.get(section) or {}).get(key)
        if not isinstance(name, str) or not name or Path(name).is_absolute():
            continue
        there, here = (set(glob.glob(name, root_dir=folder, recursive=True)) for folder in (root, workspace))  # noqa: PTH207
        if there - here:
            found.setdefault(section, {})[key] = (root / name).as_posix()
    return found


def _add_worktree(root: Path, workspace: Path) -> None:
    """A worktree of HEAD with the changed, new and deleted files of `git status`."""
    _git(root, "worktree", "add", "--detach", "--force", str(workspace), "HEAD")
    changed = _git(root, "diff", "--name-only", "--no-renames", "-z", "HEAD").split("\0")
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, changed + new):
        source, target = root / name, workspace / name
        if source.is_dir() and not source.is_symlink():
            continue  # a repository within the repository
        target.unlink(missing_ok=True)
        if source.is_symlink() or source.is_file():  # not a pipe or a socket
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def copy_project(root: Path, workspace: Path) -> None:
    """Copy the project without results, caches and virtual environments."""

    def ignored(folder: str, names: list[str]) -> list[str]:
        here = Path(folder)
        return [
            name
            for name in names
            if name in _NOT_COPIED_ANYWHERE
            or name.endswith(".partial")
            or (here / name).relative_to(root).as_posix() in _NOT_COPIED
            or (here / name / "pyvenv.cfg").is_file()
            or not _can_be_copied(here / name)
        ]

    shutil.copytree(root, workspace, symlinks=True, ignore=ignored)
    _make_writable(workspace)


def _can_be_copied(path: Path) -> bool:
    """Not a pipe, a socket or a device."""
    return path.is_symlink() or path.is_file() or path.is_dir()


def _make_writable(folder: Path) -> None:
    """Of the folders that were copied from read-only ones, so that a run can write there and they can be removed."""
    for path in (folder, *folder.rglob("*/")):
        if path.is_dir() and not path.is_symlink() and not os.access(path, os.W_OK | os.X_OK):
            path.chmod(path.stat().st_mode | stat.S_IRWXU)


def _write_dvc_config(file: Path, *, cache: Path) -> None:
    config = configparser.ConfigParser(interpolation=None)
    # DVC needs no_scm outside git; inside, it suppresses DVC's hints to commit in a temporary worktree.
    config["core"] = {"no_scm": "true", "analytics": "false"}
    config["cache"] = {"dir": str(cache)}
    file.parent.mkdir(exist_ok=True)
    with atomic_path(file) as partial, partial.open("w", encoding="utf-8") as handle:
        config.write(handle)


def _git(root: Path, *arguments: str) -> str:
    done = git(root, *arguments)
    if done.returncode:
        raise UserError(f"git {' '.join(arguments[:2])} failed in {root}: {_last_line(os.fsdecode(done.stderr))}")
    return os.fsdecode(done.stdout)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
