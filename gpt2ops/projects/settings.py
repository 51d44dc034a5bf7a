"""What `gpt2 init` and `gpt2 finetune` set in params.yaml: the text, the model to start from, and what suits both."""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gpt2core.config import PRESETS
from gpt2core.data.corpus import check_file, file_format, read_corpus
from gpt2core.errors import UserError
from gpt2core.storage.files import with_home
from gpt2ops.corpora.globbing import matching_files
from gpt2ops.params.editing import merged

RELEASED = tuple(name for name in PRESETS if name.startswith("gpt2"))
FINE_TUNING: dict[str, Any] = {
    "train": {
        "recipe": "finetune",
        "warmup_steps": None,
        "eval_interval": "epoch",
        "stop": {"target_loss": None, "max_steps": None, "max_epochs": 3},
    }
}
PROMPT_WORDS = 4


def from_model(name: str) -> dict[str, Any]:
    """Settings to fine-tune the model `name`. Raises UserError where there is none of that name."""
    return merged({"model": {"init": known_model(name)}}, FINE_TUNING)


def known_model(name: str) -> str:
    """`name`, absolute where it is a folder. Raises UserError where it can be no model."""
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


def of_text(source: str) -> dict[str, Any]:
    """Settings for the text `source`, and prompts that suit it.

    Raises UserError where it is missing, empty or no text; what is on a network is looked at when it is fetched.
    """
    from gpt2ops.corpora.sources import NAMED_SETS

    if source in NAMED_SETS or source.startswith(("hf:", "http://", "https://")):
        return {"data": {"source": source}, **_prompts("")}
    files = local_files(source)
    path = with_home(source)
    name = os.path.abspath(path)  # noqa: PTH100  # `resolve` would follow a link to another name
    watched = name if path.exists() else os.path.commonpath([file.parent.resolve() for file in files])
    return {"data": {"source": name, "watch": watched}, **_prompts(first_words(files[0]))}


def local_files(source: str) -> list[Path]:
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
        raise UserError(f"--train-file: {source} {what}; give a text file (.txt, .md, .jsonl, .parquet, .gz, .zst).")
    for file in found:
        check_file(file)
    return found


def _is_text(file: Path) -> bool:
    try:
        file_format(file)
    except UserError:
        return False
    return True


def first_words(file: Path) -> str:
    """The text's first words, to start samples with."""
    words = next(iter(read_corpus([file])), "")[:500].split()
    return " ".join(words[:PROMPT_WORDS])


def _prompts(words: str) -> dict[str, Any]:
    return {"train": {"sample_prompt": words}, "sample": {"prompts": list(dict.fromkeys([words, ""]))}}


def combined(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Each laid over those before it."""
    result: dict[str, Any] = {}
    for one in settings:
        result = merged(result, one)
    return result


def registry_name(folder: Path) -> str:
    """The folder's name as that of a registered model."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "gpt2"
