"""What `gpt2 init` and `gpt2 finetune` set in params.yaml: the text, the initial model, and settings that fit both."""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gpt2core.config import PRESETS
from gpt2core.data.corpus import SUFFIXES, file_format
from gpt2core.errors import UserError
from gpt2core.storage.files import with_home
from gpt2ops.corpora.globbing import matching_files
from gpt2ops.corpora.source_files import check_source_file, first_prompts
from gpt2ops.params.editing import merged
from gpt2ops.params.problems import user_error
from gpt2ops.params.sections import Data

RELEASED = tuple(name for name in PRESETS if name.startswith("gpt2"))
FINE_TUNING: dict[str, Any] = {
    "train": {
        "recipe": "finetune",
        "warmup_steps": None,
        "eval_interval": "epoch",
        "stop": {"target_loss": None, "max_steps": None, "max_epochs": 3},
    }
}


def from_model(name: str) -> dict[str, Any]:
    """Settings to fine-tune the model `name`. Raises UserError where there is none of that name."""
    return merged({"model": {"init": model_source(name)}}, FINE_TUNING)


def model_source(name: str) -> str:
    """`name`, as an absolute path where it is a folder. Raises UserError where it names no model."""
    if name in RELEASED or name.startswith("models:/"):
        return name
    folder = with_home(name)
    if not folder.is_dir():
        nearest = get_close_matches(name, RELEASED, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(RELEASED)}, and models:/NAME@ALIAS."
        raise UserError(f"--model ({name!r}): no such folder, and no released model; {hint}")
    if not (folder / "config.json").is_file():
        raise UserError(f"--model: {name} has no config.json, so it is no model in the Hugging Face layout.")
    return str(folder.resolve())


def from_preset(preset: str) -> dict[str, Any]:
    """Settings to train new weights. Raises UserError for an unknown preset."""
    if preset not in PRESETS:
        nearest = get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(PRESETS)}."
        raise UserError(f"--preset ({preset!r}) is unknown; {hint}")
    # The target of params.yaml is that of the bundled plays; a position that is not trained would spoil every score.
    train = {"sequence_length": PRESETS[preset].block_size, "stop": {"target_loss": None}}
    return {"model": {"init": "scratch", "preset": preset}, "train": train}


def of_text(source: str, reading: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for the text `source`, and prompts from its start. `reading`: keys of `data` that say how it is read.

    Raises UserError where it is missing, empty or no text; a source on a network is checked when it is downloaded.
    """
    from gpt2ops.corpora.sources import NAMED_SETS

    if source in NAMED_SETS or source.startswith(("hf:", "http://", "https://")):
        return {"data": {"source": source}, **prompts_of([""])}
    files = local_files(source, reading)
    path = with_home(source)
    name = os.path.abspath(path)  # noqa: PTH100  # `resolve` would follow a link to another name
    watched = name if path.exists() else os.path.commonpath([file.parent.resolve() for file in files])
    return {"data": {"source": name, "watch": watched}, **prompts_of(first_prompts(files[0], data_of(reading)))}


def data_of(reading: Mapping[str, Any]) -> Data:
    """The section `data` with these keys. Raises UserError where one is wrong."""
    try:
        return Data.model_validate(reading)
    except ValidationError as error:
        raise user_error(error, Data) from None


def local_files(source: str, reading: Mapping[str, Any]) -> list[Path]:
    """The files that a file, folder or glob names. Raises UserError where there is none, or one is no text."""
    path = with_home(source)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _is_text(file))
    else:
        found = matching_files(str(path))
    if not found:
        what = "has no text files" if path.is_dir() else "is missing"
        raise UserError(f"--train-file: {source} {what}; give a text file ({', '.join(SUFFIXES)}, also .gz and .zst).")
    data = data_of(reading)
    for file in found:
        check_source_file(file, data)
    return found


def _is_text(file: Path) -> bool:
    try:
        file_format(file)
    except UserError:
        return False
    return True


def prompts_of(prompts: list[str]) -> dict[str, Any]:
    """Settings to sample with `prompts`, in training with the first."""
    return {"train": {"sample_prompt": prompts[0]}, "sample": {"prompts": prompts}}


def combined(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings in one; a later value replaces an earlier one of the same key."""
    result: dict[str, Any] = {}
    for one in settings:
        result = merged(result, one)
    return result


def registry_name(folder: Path) -> str:
    """A valid name of a registered model, from the folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "gpt2"
