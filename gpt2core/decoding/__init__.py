"""Decoding: `generate`, `stream`, and what they are made of.

Names load on first use: the table of options needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2core.decoding.generation import generate
    from gpt2core.decoding.options import GenerationOptions
    from gpt2core.decoding.output import GenerateOutput
    from gpt2core.decoding.packed.model import PackedGPT
    from gpt2core.decoding.streaming import stream

__all__ = ["GenerateOutput", "GenerationOptions", "PackedGPT", "generate", "stream"]

_HOMES = {
    "GenerateOutput": "output",
    "GenerationOptions": "options",
    "PackedGPT": "packed.model",
    "generate": "generation",
    "stream": "streaming",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"gpt2core.decoding.{_HOMES[name]}"), name)
