"""What `gpt2 init` and `gpt2 finetune` set in params.yaml: the text, the initial model, and settings that fit both."""

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gpt2core.config import PRESETS
from gpt2core.data.corpus import SUFFIXES, check_file, file_format, read_corpus
from gpt2core.errors import UserError
from gpt2core.storage.files import with_home
from gpt2core.tokenizer import END_OF_TEXT
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


def of_text(source: str, **reading: str) -> dict[str, Any]:
    """Settings for the text `source`, and prompts from its first words. `reading`: as for `read_corpus`.

    Raises UserError where it is missing, empty or no text; a source on a network is checked when it is downloaded.
    """
    from gpt2ops.corpora.sources import NAMED_SETS

    if source in NAMED_SETS or source.startswith(("hf:", "http://", "https://")):
        return {"data": {"source": source}, **_prompts("")}
    files = local_files(source, **reading)
    path = with_home(source)
    name = os.path.abspath(path)  # noqa: PTH100  # `resolve` would follow a link to another name
    watched = name if path.exists() else os.path.commonpath([file.parent.resolve() for file in files])
    return {"data": {"source": name, "watch": watched}, **_prompts(first_words(files[0], **reading))}


def local_files(source: str, **reading: str) -> list[Path]:
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
    for file in found:
        check_file(file, **reading)
    return found


def _is_text(file: Path) -> bool:
    try:
        file_format(file)
    except UserError:
        return False
    return True


def first_words(file: Path, *, text_field: str = "text", documents: str = "separator") -> str:
    """The first PROMPT_WORDS words of the first document."""
    start = next(iter(read_corpus([file], text_field=text_field, documents=documents)), "")
    return " ".join(start.partition(END_OF_TEXT)[0][:500].split()[:PROMPT_WORDS])


def _prompts(words: str) -> dict[str, Any]:
    return {"train": {"sample_prompt": words}, "sample": {"prompts": list(dict.fromkeys([words, ""]))}}


def combined(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings in one; a later value replaces an earlier one of the same key."""
    result: dict[str, Any] = {}
    for one in settings:
        result = merged(result, one)
    return result


def registry_name(folder: Path) -> str:
    """A valid name of a registered model, from the folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "gpt2"
