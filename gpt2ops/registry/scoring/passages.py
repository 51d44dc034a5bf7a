"""Hashes of a run's training passages, kept with its versions: they tell whether it may have trained on a text.

Two runs may split one text differently, or share a part of their sources. A passage is found wherever it lies.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2core.errors import UserError
from gpt2core.evaluation.scores import Tokens

PASSAGE_TOKENS = 32  # a power of two; shorter ones are repeated by chance in texts of one kind
MOST_HASHES = 1 << 20  # 8 MB; of a longer text a sample is kept
PIECE = 1 << 20  # tokens hashed at once
FILE = "train_passages.safetensors"
_HASHES, _ONE_IN = "hashes", "one_in"
_LARGEST_ONE_IN = 1 << 40
_BASE = 0x9E3779B97F4A7C15  # odd, so that no power of it is 0 modulo 2^64
_WORD = 2**64


class FirstTokens:
    """The first `most` tokens of a text."""

    def __init__(self, text: Tokens, most: int) -> None:
        self._text, self._count = text, min(len(text), most)

    def __len__(self) -> int:
        return self._count

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._text.read(start, stop)


@dataclass(frozen=True)
class Passages:
    """`hashes`: (N,) uint64, ascending and distinct: those of a text that are multiples of `one_in`, a power of two."""

    hashes: np.ndarray
    one_in: int

    def sample(self, one_in: int) -> np.ndarray:
        """Those hashes that are multiples of a greater `one_in` too."""
        return self.hashes[self.hashes % np.uint64(one_in) == 0]


def train_passages(text: Tokens, most: int = MOST_HASHES) -> Passages:
    """The hashes of a training text, about `most` of them at most."""
    one_in = 1
    while len(text) > most * one_in:
        one_in *= 2
    return Passages(_hashes(text, one_in), one_in)


def seen_share(held_out: Tokens, theirs: Passages, own: Passages) -> float | None:
    """The share of the passages of a held-out text that `theirs` has and `own` has not.

    What both have trained on favours neither. None where the text has no passage, or none in the sample.
    """
    one_in = max(theirs.one_in, own.one_in)
    asked = _hashes(held_out, one_in)
    if not len(asked):
        return None
    seen = np.isin(asked, theirs.sample(one_in)) & ~np.isin(asked, own.sample(one_in))
    return float(seen.mean())


def write_passages(passages: Passages, folder: Path) -> Path:
    """Returns the file in `folder`."""
    from safetensors.numpy import save_file

    file = folder / FILE
    save_file({_HASHES: passages.hashes}, file, {_ONE_IN: str(passages.one_in)})
    return file


def read_passages(file: Path) -> Passages:
    """Raises UserError where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as stored:
            hashes, one_in = stored.get_tensor(_HASHES), int(stored.metadata()[_ONE_IN])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file.name} is damaged: {error}") from None
    if hashes.dtype != np.uint64 or hashes.ndim != 1 or not 1 <= one_in <= _LARGEST_ONE_IN or one_in & (one_in - 1):
        raise UserError(f"{file.name} is damaged: it holds no hashes of passages.")
    return Passages(hashes, one_in)


def _hashes(text: Tokens, one_in: int) -> np.ndarray:
    found = [piece[piece % np.uint64(one_in) == 0] for piece in _pieces(text)]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))


def _pieces(text: Tokens) -> Iterator[np.ndarray]:
    """The hash of the passage at each position, uint64; the arithmetic is modulo 2^64."""
    for start in range(0, len(text) - PASSAGE_TOKENS + 1, PIECE):
        stop = min(start + PIECE + PASSAGE_TOKENS - 1, len(text))
        hashes = _mixed(text.read(start, stop).astype(np.uint64) + np.uint64(1))
        length = 1
        while length < PASSAGE_TOKENS:  # two neighbouring passages make one of twice the length
            hashes = hashes[:-length] * np.uint64(pow(_BASE, length, _WORD)) + hashes[length:]
            length *= 2
        yield _mixed(hashes)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit depends on every bit (the last step of SplitMix64), as a sample by the low bits needs."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
