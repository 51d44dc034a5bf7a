"""Reading what an earlier stage has written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2core.errors import UserError
from gpt2core.storage.files import read_json


def read_report(path: Path, stage: str, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON object at `path`, which `stage` writes. Raises UserError where it is missing or lacks one of `keys`."""
    report = _read(path, stage)
    missing = [key for key in keys if key not in report] if isinstance(report, dict) else ["an object"]
    if missing:
        raise UserError(f"{path} is damaged (no {', '.join(missing)} in it): run `dvc repro --force {stage}`.")
    return dict(report)


def read_rows(path: Path, stage: str) -> list[dict[str, Any]]:
    """The JSON list of objects at `path`, which `stage` writes. Raises UserError where it is missing or no list."""
    rows = _read(path, stage)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "step" in row for row in rows):
        raise UserError(f"{path} is damaged (no list of steps): run `dvc repro --force {stage}`.")
    return rows


def _read(path: Path, stage: str) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the stage {stage} first (`dvc repro {stage}`).") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): run `dvc repro --force {stage}`.") from None
