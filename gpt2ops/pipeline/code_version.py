"""Which code made a result: the package's version, a digest of its files, and its git commit."""

import hashlib
import importlib.metadata
import subprocess
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

PACKAGE = "gpt2-workflow"
# The code that stages run; flows do not change a result.
CODE = ("gpt2core", "gpt2ops", "tasks")


def code_root() -> Path:
    """The folder that holds the packages: the checkout, or where pip has put them."""
    return Path(__file__).resolve().parents[2]


def package_version() -> str:
    """The version in the checkout's pyproject.toml, else of the installed package."""
    project = code_root() / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:  # a copy of the packages alone
        return "unknown"


def code_sha256(root: Path | None = None) -> str:
    """SHA-256 of all code that stages run, under `root` (default: this code)."""
    return digest(CODE, root or code_root())


def digest(names: Iterable[str], root: Path) -> str:
    """SHA-256 of the files and folders `names` under `root`: relative paths and contents."""
    found = hashlib.sha256()
    for name in sorted(names):
        path = root / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            # git may convert line ends.
            content = file.read_bytes().replace(b"\r\n", b"\n")
            found.update(f"{file.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


@cache
def code_commit() -> str | None:
    """The commit of this code's checkout; None for an installed package or an unzipped download."""
    command = ["git", "-C", str(code_root()), "ls-files", "--error-unmatch", "gpt2ops/pipeline/code_version.py"]
    try:
        subprocess.run(command, capture_output=True, timeout=20, check=True)
        head = ["git", "-C", str(code_root()), "rev-parse", "HEAD"]
        return subprocess.run(head, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
