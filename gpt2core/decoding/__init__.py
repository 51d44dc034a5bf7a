"""Decoding: `generate`, `stream`, and what they are made of."""

from gpt2core.decoding.generate import generate
from gpt2core.decoding.options import GenerationOptions
from gpt2core.decoding.output import GenerateOutput
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.streaming import stream

__all__ = ["GenerateOutput", "GenerationOptions", "PackedGPT", "generate", "stream"]
