"""What makes two trainings the same run: the fingerprint of a checkpoint, where it lies, and runs left unfinished."""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from gpt2core.storage.files import read_json
from gpt2core.training.checkpoint import STATE, step_directories, step_of
from gpt2ops.params.schema import Params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.code_version import code_sha256

# Settings that do not change the weights after a given step: when to stop, what to log, what to keep.
NEUTRAL_TRAIN_KEYS = {
    "recipe",
    "stop",
    "log_interval",
    "checkpoint_interval",
    "keep_last",
    "resume",
    "sample_prompt",
    "sample_tokens",
    "sample_interval",
}
# Settings added after the first release, with the value that earlier runs had: earlier checkpoints still match.
LATER_KEYS = {
    "train.spike_rollback": None,
    "train.cuda_graph": "auto",
    "train.mask_prompt": True,
    "train.long_examples": "leave_out",
    "train.packing": False,
    "kernels": "auto",
    "model.activation_function": "gelu_new",
    "model.tie_word_embeddings": True,
}
# Keys whose name in params.yaml differs.
_NAMES = {"seed": "run.seed", "precision": "run.precision"}
_MAX_DIFFERENCES = 4  # named in a message


def fingerprint_of(params: Params, config: dict[str, Any], data_sha256: str, precision: str) -> dict[str, Any]:
    """All settings that decide the weights; a checkpoint with another fingerprint belongs to another run."""
    train = params.train.model_dump()
    fingerprint = {
        "data_sha256": data_sha256,
        "seed": params.run.seed,
        "precision": precision,
        "kernels": params.run.kernels,
        "epoch": "all tokens",  # versions up to 0.2 left out what did not fill the last batch
        "model.init": params.model.init,
        **{f"model.{key}": value for key, value in config.items()},
        **{f"train.{key}": value for key, value in train.items() if key not in NEUTRAL_TRAIN_KEYS},
    }
    return {key: value for key, value in fingerprint.items() if LATER_KEYS.get(key, ...) != value}


def checkpoints_of(fingerprint: dict[str, Any]) -> Path:
    """The run's own directory, so that restoring earlier settings finds their checkpoints."""
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    return paths.CHECKPOINTS / digest[:12]


def recorded() -> dict[str, str]:
    """Hashes of the stage's entry in dvc.lock and of the code."""
    try:
        entry = yaml.safe_load(paths.DVC_LOCK.read_text(encoding="utf-8"))["stages"]["finetune"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        entry = None
    return {
        "recorded_sha256": hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest(),
        "code_sha256": code_sha256(),
    }


def was_lost(extra: dict[str, Any]) -> bool:
    """Whether a finished run was killed before DVC recorded its results: `recorded` is as when the run began.

    Otherwise the stage runs because the user forced it or because the code changed.
    """
    now = recorded()
    return {key: extra.get(key) for key in now} == now


def unfinished_run(checkpoints: Path, fingerprint: dict[str, Any]) -> str | None:
    """A message about the newest run outside `checkpoints`, and how it differs; None if it finished or none exists."""
    newest = [steps[-1] for folder in paths.CHECKPOINTS.glob("*") if (steps := step_directories(folder))]
    newest = sorted(
        (path for path in newest if path.parent != checkpoints and step_of(path)), key=lambda path: path.stat().st_mtime
    )
    if not newest:
        return None
    try:
        state = read_json(newest[-1] / STATE)
        other, finished = dict(state["fingerprint"]), state["finished"]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    if finished is not None:
        return None
    differing = [key for key in {**other, **fingerprint} if other.get(key) != fingerprint.get(key)]
    named = [
        "the data"
        if key == "data_sha256"
        else f"{_NAMES.get(key, key)} was {other.get(key)}, is {fingerprint.get(key)}"
        for key in differing[:_MAX_DIFFERENCES]
    ]
    more = f"; and {len(differing) - _MAX_DIFFERENCES} more" if len(differing) > _MAX_DIFFERENCES else ""
    return (
        f"an unfinished run at step {step_of(newest[-1])} is not resumed because its settings differ "
        f"({'; '.join(named)}{more}); its checkpoints stay in {newest[-1].parent.as_posix()}, and restoring these "
        "settings resumes it"
    )
