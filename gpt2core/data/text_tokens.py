"""The tokens of a text file in memory, for what scores or looks at a text that is no tokenized corpus."""

from functools import cached_property
from pathlib import Path

import numpy as np

from gpt2core.data.corpus import read_corpus
from gpt2core.data.writer import encode_fragments
from gpt2core.tokenizer import Tokenizer


class TextTokens:
    """uint16 tokens, read by position as a split's, documents apart by <|endoftext|>."""

    def __init__(self, file: Path) -> None:
        """Raises UserError where `file` cannot be read, ValueError where it has no text."""
        # The last document's end is followed by nothing that could be scored.
        self._ids = np.concatenate([*encode_fragments(read_corpus([file]))])[:-1]

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` (exclusive), uint16 (stop - start,)."""
        return self._ids[start:stop]

    @cached_property
    def document_starts(self) -> np.ndarray:
        """Index of each document's first token, int64 (D,)."""
        return np.append(0, np.flatnonzero(self._ids == Tokenizer.eot_id) + 1)
