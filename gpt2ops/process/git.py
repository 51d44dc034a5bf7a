"""Git, asked about a folder, whatever repository the environment names, as it does within a hook."""

import os
import subprocess
from pathlib import Path

# `git rev-parse --local-env-vars`: they make git, and DVC, look at another repository than that of the folder.
_LOCAL = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_CONFIG", "GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS",
    "GIT_DIR", "GIT_GRAFT_FILE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_REPLACE_REF_BASE", "GIT_SHALLOW_FILE", "GIT_WORK_TREE",
}  # fmt: skip


def without_repository() -> dict[str, str]:
    """This environment without the variables that name a repository."""
    return {name: value for name, value in os.environ.items() if name not in _LOCAL}


def git(
    folder: Path, *arguments: str, timeout: float | None = None, check: bool = False
) -> "subprocess.CompletedProcess[bytes]":
    """`git arguments` in `folder`. Raises OSError without git, SubprocessError for a time-out or (`check`) a failure.

    Names of files come as bytes: they need not be UTF-8.
    """
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env=without_repository(), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=check,
    )  # fmt: skip
