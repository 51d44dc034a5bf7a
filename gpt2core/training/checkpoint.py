"""Atomic checkpoint directories with checksums; the manifest, written last, marks one as complete.

A checkpoint is a directory in the Hugging Face layout, with the optimizer's tensors and the trainer's state added.
The number of completed steps in that state is also the position in the data, the schedule and the random numbers: a
batch, a learning rate and a dropout mask are functions of the step and the settings.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.storage.files import inside, read_json, replaced_directory, sha256_file, write_json, write_text
from gpt2core.storage.hf import save_tensors, write_model

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
STATE = "trainer.json"
NEEDED = {STATE, OPTIMIZER, "config.json", "model.safetensors"}


class DamagedCheckpointError(UserError):
    """A checkpoint whose files are not those its manifest lists."""


@dataclass(frozen=True)
class Weights:
    """A model's weights without its modules, which would take longer to copy."""

    config: GPTConfig
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, model: GPT) -> "Weights":
        """The model's own tensors, which training goes on to change."""
        return cls(model.config, {name: tensor.detach() for name, tensor in model.named_parameters()})

    def copied(self, device: str | None = None) -> "Weights":
        """A copy on `device`, or where they are."""
        return Weights(self.config, {name: tensor.to(device, copy=True) for name, tensor in self.tensors.items()})

    def save_pretrained(self, directory: Path) -> None:
        """As `GPT.save_pretrained`."""
        write_model(self.config, self.tensors, directory)


@dataclass(frozen=True)
class Checkpoint:
    directory: Path
    state: dict[str, Any]
    optimizer: dict[str, Tensor]


def save_checkpoint(directory: Path, model: GPT | Weights, optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write the checkpoint to a temporary directory, flush and rename it; an older one of that name is replaced."""
    with replaced_directory(directory) as partial:
        model.save_pretrained(partial)
        save_tensors(optimizer, partial / OPTIMIZER)
        # On one line: indenting the history of a long run takes seconds.
        write_text(partial / STATE, json.dumps(state, allow_nan=False))
        files = {
            path.name: {"size_bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(partial.iterdir())
        }
        facts = {key: state[key] for key in ("step", "fingerprint") if key in state}
        write_json(partial / MANIFEST, {"format_version": FORMAT_VERSION, **facts, "files": files})


def load_checkpoint(directory: Path) -> Checkpoint:
    """State and optimizer of a complete checkpoint. Raises DamagedCheckpointError naming the damaged file."""
    verify_checkpoint(directory)
    return Checkpoint(directory, read_json(directory / STATE), load_file(directory / OPTIMIZER))


def check_same_run(found: Checkpoint, fingerprint: dict[str, Any]) -> None:
    """Raises UserError for a checkpoint whose settings differ from `fingerprint`."""
    differing = [key for key, value in fingerprint.items() if found.state["fingerprint"].get(key) != value]
    if differing:
        raise UserError(f"{found.directory} is of another run: {', '.join(differing)} differ; move it away.")


def verify_checkpoint(directory: Path) -> None:
    """Raises DamagedCheckpointError unless every file has the size and hash that the manifest lists."""
    try:
        manifest = read_json(inside(directory / MANIFEST, directory))
        files = manifest["files"]
        if manifest["format_version"] != FORMAT_VERSION:
            raise DamagedCheckpointError(
                f"{directory} has format_version {manifest['format_version']!r}, expected {FORMAT_VERSION}"
            )
        if missing := NEEDED - files.keys():
            raise DamagedCheckpointError(f"{directory / MANIFEST} does not list {min(missing)}")
        for name, facts in files.items():
            path = inside(directory / Path(name).name, directory)
            if not path.is_file() or path.stat().st_size != facts["size_bytes"]:
                raise DamagedCheckpointError(f"{path} is missing or truncated")
            if sha256_file(path) != facts["sha256"]:
                raise DamagedCheckpointError(f"{path} was changed: its hash is not the manifest's")
    except DamagedCheckpointError:
        raise
    except UserError as error:
        raise DamagedCheckpointError(str(error)) from None
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{directory / MANIFEST} cannot be read ({type(error).__name__})") from None


def step_directories(root: Path) -> list[Path]:
    """Checkpoints under `root`, oldest first."""
    return sorted(path for path in root.glob("step-*") if re.fullmatch("step-[0-9]+", path.name) and path.is_dir())


def step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))


def newest_valid(root: Path, at_most: int | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint under `root`, and a line for each damaged one, which is set aside.

    `at_most`: only steps up to this one. Leftovers of a killed save are removed, so no other process may be saving.
    """
    damaged: list[str] = []
    for partial in root.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for old in root.glob(".*.old"):
        target = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:  # the save was killed between its two renames
            old.rename(target)
    for directory in reversed(step_directories(root)):
        if at_most is not None and step_of(directory) > at_most:
            continue
        try:
            return load_checkpoint(directory), damaged
        except DamagedCheckpointError as error:
            aside = directory.with_name(f"damaged-{directory.name}")
            shutil.rmtree(aside, ignore_errors=True)
            directory.rename(aside)
            damaged.append(f"{error}; set aside as {aside.name}")
    return None, damaged


def remove_older(root: Path, keep_last: int) -> None:
    for directory in step_directories(root)[:-keep_last]:
        shutil.rmtree(directory)
