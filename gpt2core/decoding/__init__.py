"""Decoding: `generate` and what it is made of."""

from gpt2core.decoding.generate import generate

__all__ = ["generate"]
