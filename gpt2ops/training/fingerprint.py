"""An unfinished training of other settings in this project: it is not gone on with, and its owner is told why."""

from pathlib import Path
from typing import Any

from gpt2core.storage.files import read_json
from gpt2core.training.checkpoint import STATE, step_directories, step_of
from gpt2ops import paths

# What a fingerprint calls otherwise than params.yaml does.
_NAMES = {"seed": "run.seed", "precision": "run.precision"}
_SHOWN = 4


def left_behind(checkpoints: Path, fingerprint: dict[str, Any]) -> str | None:
    """A line that names what differs from the newest other training here, where that one had not come to its end."""
    newest = [steps[-1] for folder in paths.CHECKPOINTS.glob("*") if (steps := step_directories(folder))]
    newest = sorted(
        (path for path in newest if path.parent != checkpoints and step_of(path)), key=lambda path: path.stat().st_mtime
    )
    if not newest:
        return None
    try:
        state = read_json(newest[-1] / STATE)
        theirs, finished = dict(state["fingerprint"]), state["finished"]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    if finished is not None:
        return None
    differing = [key for key in {**theirs, **fingerprint} if theirs.get(key) != fingerprint.get(key)]
    said = [
        "the data" if key == "data_sha256" else f"{_NAMES.get(key, key)} {theirs.get(key)}, now {fingerprint.get(key)}"
        for key in differing[:_SHOWN]
    ]
    more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return (
        f"an unfinished training at step {step_of(newest[-1])} is not gone on with, for it differs "
        f"({'; '.join(said)}{more}); it is kept in {newest[-1].parent.as_posix()} and goes on when that is set back"
    )
