"""The folder that a command writes a model to."""

from pathlib import Path

from gpt2core.errors import UserError


def check_new_directory(path: Path) -> None:
    """Raises UserError unless `path` can be made: nothing there, or an empty folder."""
    if path.is_dir() and not path.is_symlink():
        if any(path.iterdir()):
            raise UserError(f"--output-dir {path} exists and is not empty; name a new folder or remove that one.")
    elif path.exists() or path.is_symlink():
        raise UserError(f"--output-dir {path} is a file or a link; name a new folder.")
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir():
        raise UserError(f"--output-dir {path}: {nearest} is a file; name a new folder.")
