"""What a reader gives: tensors under the names they have in the file, and what the file says of sizes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.storage.bounds import read_whole
from gpt2core.storage.files import parse_json


@dataclass
class Source:
    """Tensors as found. `sizes` and `settings` come from the source itself, `origin` names the part."""

    kind: str
    tensors: dict[str, Tensor]
    sizes: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    notes: list[str] = field(default_factory=list)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises UserError when damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); fetch or save it again.") from None


def read_small_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError for a file that is huge, damaged or holds no object."""
    content = read_whole(path)
    try:
        value = parse_json(content.decode())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({type(error).__name__}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.")
    return value
