"""Which code made a result: the package's version, a digest of its files, and its git commit.

Files have the names of the repository: the wheel has those of `tasks/` in `gpt2ops/stages/`.
"""

import hashlib
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from gpt2core import __version__
from gpt2ops.process.git import git

PACKAGE = "gpt2-workflow"
# The code that stages run; flows do not change a result.
CODE = ("gpt2core", "gpt2ops", "tasks")
_STAGES = "gpt2ops/stages"
# Parts of gpt2ops that only the wheel or only the checkout has.
_NOT_CODE = (f"{_STAGES}/", "gpt2ops/published/")


def code_root() -> Path:
    """The folder that holds the packages: the checkout, or where pip has put them."""
    return Path(__file__).resolve().parents[2]


def package_version() -> str:
    return __version__


def code_sha256(root: Path | None = None) -> str:
    """SHA-256 of all code that stages run, under `root` (default: this code)."""
    return digest(CODE, root or code_root())


def digest(names: Iterable[str], root: Path) -> str:
    """SHA-256 of the files and folders `names` under `root`: relative paths and contents.

    It is the same in a checkout and in what its wheel installs.
    """
    found = hashlib.sha256()
    for shown, file in (pair for name in sorted(names) for pair in _files(name, root)):
        # git may convert line ends.
        content = file.read_bytes().replace(b"\r\n", b"\n")
        found.update(f"{shown}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def _files(name: str, root: Path) -> Iterator[tuple[str, Path]]:
    """The files that `name` is or holds, each with its name in the repository."""
    installed = (root / _STAGES / "finetune.py").is_file()
    first, slash, rest = name.partition("/")
    path = root / (f"{_STAGES}{slash}{rest}" if installed and first == "tasks" else name)
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        shown = name if file == path else f"{name}/{file.relative_to(path).as_posix()}"
        if file.is_file() and "__pycache__" not in file.parts and not shown.startswith(_NOT_CODE):
            yield shown, file


@cache
def code_commit() -> str | None:
    """The commit of this code's checkout; None for an installed package or an unzipped download."""
    try:
        git(code_root(), "ls-files", "--error-unmatch", "gpt2ops/pipeline/code_version.py", timeout=20, check=True)
        return git(code_root(), "rev-parse", "HEAD", timeout=20, check=True).stdout.decode().strip()
    except (OSError, subprocess.SubprocessError):
        return None
