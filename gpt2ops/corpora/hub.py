"""Saves a data set of the Hugging Face Hub as .jsonl.zst files, one per split."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2core.errors import UserError
from gpt2ops.process.console import progress_bar

# The usual splits in reading order; others follow by name.
SPLIT_ORDER = ("train", "validation", "test")
ZSTD_LEVEL = 3


def save_dataset(name: str, fields: Mapping[str, type], folder: Path) -> tuple[list[str], str | None]:
    """Write each split of the data set `OWNER/NAME[/CONFIG]` (or a local folder of one) into `folder`.

    Returns the file names in reading order, and the licence if the data set states one. Of a record `fields` are kept,
    which have these types. Records are streamed, so memory stays bounded. Raises UserError if it cannot be loaded, or
    has no such field.
    """
    import datasets

    path, config = _path_and_config(name)
    datasets.utils.logging.set_verbosity(logging.ERROR)
    try:
        splits = datasets.load_dataset(path, config, streaming=True)
        invalid = [split for split in splits if not re.fullmatch(r"\w[\w.-]*", str(split))]
        if invalid:  # it becomes a file name
            raise UserError(f"hf:{name}: the split name {invalid[0]!r} is not a valid file name.")
        order = sorted(
            splits,
            key=lambda split: (
                split not in SPLIT_ORDER,
                SPLIT_ORDER.index(split) if split in SPLIT_ORDER else 0,
                split,
            ),
        )
        files = [
            _save_split(splits[split], f"hf:{name}, split {split}", fields, folder / f"{split}.jsonl.zst")
            for split in order
        ]
        licence = next((splits[split].info.license for split in order), None)
    except UserError:
        raise
    except Exception as error:  # the hub's client, its transport and its readers each raise their own types
        if isinstance(error, OSError) and error.errno == 28:  # ENOSPC: the stage reports it
            raise
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(
            f"hf:{name} cannot be loaded ({reason}); without a network, get its files elsewhere and set data.source to "
            "their folder."
        ) from None
    return files, licence or None


def _path_and_config(name: str) -> tuple[str, str | None]:
    if Path(name).is_dir():
        return name, None
    parts = name.split("/")
    if len(parts) > 3 or not all(re.fullmatch(r"\w[\w.-]*", part) for part in parts):
        raise UserError(f"data.source ('hf:{name}') must be hf:OWNER/NAME or hf:OWNER/NAME/CONFIG.")
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def _save_split(records: Any, where: str, fields: Mapping[str, type], path: Path) -> str:
    """Write the `fields` of `records` to `path`; returns its name."""
    import zstandard

    with (
        path.open("wb") as handle,
        zstandard.ZstdCompressor(level=ZSTD_LEVEL).stream_writer(handle) as packed,
        progress_bar(where, total=None, unit=" records") as bar,
    ):
        for number, record in enumerate(records, start=1):
            for name, kind in fields.items():
                if name not in record:
                    found = ", ".join(map(repr, record))
                    raise UserError(f"{where}: no field {name!r} (it has {found}); set {_key(kind, fields)}.")
                if not isinstance(record[name], kind):
                    what = "text" if kind is str else "a list of messages"
                    raise UserError(
                        f"{where}, record {number}: field {name!r} is not {what}; set {_key(kind, fields)}."
                    )
            kept = {name: record[name] for name in fields}
            packed.write(json.dumps(kept, ensure_ascii=False).encode() + b"\n")
            bar.update()
    return path.name


def _key(kind: type, fields: Mapping[str, type]) -> str:
    """The setting that names the fields."""
    return "data.text_field" if kind is str and len(fields) == 1 else "data.fields"
