"""The losses by block of a run's model, in one safetensors file: what another model is compared with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt2core.errors import UserError
from gpt2core.evaluation.blocks import BlockLosses
from gpt2core.storage.files import atomic_path

GATE = "gate"  # the losses that models are compared by; the others are named by their split
_SUMS, _COUNTS = ".sums", ".counts"


@dataclass(frozen=True)
class StoredLosses:
    """`gate` is that of evaluate.json: it says which text the losses of GATE are of; empty without held-out text."""

    by_name: dict[str, BlockLosses]
    gate: dict[str, Any] = field(default_factory=dict)

    @property
    def compared(self) -> BlockLosses | None:
        return self.by_name.get(GATE)


def write_losses(path: Path, losses: Mapping[str, BlockLosses], gate: Mapping[str, Any] | None) -> None:
    from safetensors.numpy import save_file

    tensors = {}
    for name, found in losses.items():
        tensors[name + _SUMS] = found.sums
        tensors[name + _COUNTS] = found.counts.astype(np.int64)
    about = {"units": json.dumps({name: found.unit for name, found in losses.items()}), GATE: json.dumps(gate or {})}
    with atomic_path(path) as partial:
        save_file(tensors, partial, about)


def read_losses(path: Path) -> StoredLosses:
    """Raises UserError where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as stored:
            about = stored.metadata() or {}
            units, gate = json.loads(about["units"]), json.loads(about[GATE])
            losses = {
                str(name): _checked(stored.get_tensor(name + _SUMS), stored.get_tensor(name + _COUNTS), str(unit))
                for name, unit in units.items()
            }
            return StoredLosses(losses, dict(gate))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path.name} is damaged: {error}") from None


def _checked(sums: np.ndarray, counts: np.ndarray, unit: str) -> BlockLosses:
    if sums.dtype != np.float64 or counts.dtype != np.int64 or sums.ndim != 1 or sums.shape != counts.shape:
        raise ValueError("it holds no losses by block")
    if not len(sums) or counts.min() < 1:
        raise ValueError("a block has no tokens")
    return BlockLosses(sums, counts, unit)
