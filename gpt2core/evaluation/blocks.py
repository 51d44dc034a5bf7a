"""Losses of a text by block: the unit in which a score's luck is measured, for neighbouring tokens are alike.

A block is a document where the scored text has enough of them, else a run of BLOCK_TOKENS tokens.
"""

from dataclasses import dataclass

import numpy as np

BLOCK_TOKENS = 512
FEWEST_BLOCKS = 5  # of fewer, no interval holds what it says
FEWEST_DOCUMENTS = 20  # fewer, such as three plays, say less than the runs of tokens in them


@dataclass(frozen=True)
class BlockLosses:
    """`sums` (N,) float64 are the losses in nats of a block's tokens, `counts` (N,) int64 how many there are."""

    sums: np.ndarray
    counts: np.ndarray
    unit: str  # "document", "example" or "512 tokens"

    def __len__(self) -> int:
        return len(self.sums)

    @property
    def loss(self) -> float:
        """The mean over all tokens."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def stderr(self) -> float | None:
        """Standard error of `loss`, that of a ratio of means (Cochran 1977, "Sampling techniques", section 2.11).

        None for fewer than FEWEST_BLOCKS blocks.
        """
        blocks = len(self)
        if blocks < FEWEST_BLOCKS:
            return None
        apart = self.sums - self.loss * self.counts
        return float(np.sqrt((apart**2).sum() * blocks / (blocks - 1)) / self.counts.sum())


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a text's first tokens begin: `edges` (N + 1,) int64, from 0 to the number of tokens."""

    edges: np.ndarray
    unit: str

    def losses(self, of_tokens: np.ndarray) -> BlockLosses:
        """`of_tokens` (tokens - 1,): the loss of each token but the first, which has no context."""
        starts = np.maximum(self.edges[:-1], 1) - 1
        counts = np.diff(np.append(starts, len(of_tokens)))
        sums = np.add.reduceat(of_tokens.astype(np.float64), starts)
        return BlockLosses(sums, counts, self.unit)


def blocks_of(total: int, document_starts: np.ndarray | None = None) -> Blocks:
    """The blocks of a text's first `total` tokens, at least two.

    `document_starts` (D,) are the positions of first tokens; a function of the text alone, so that two models are
    scored by the same blocks. A first block of one token, which cannot be scored, is part of the next.
    """
    inner = np.empty(0, np.int64) if document_starts is None else np.asarray(document_starts, np.int64)
    inner = inner[(inner > 1) & (inner < total)]
    unit = "document"
    if len(inner) + 1 < FEWEST_DOCUMENTS:
        unit = f"{BLOCK_TOKENS} tokens"
        # The last run takes up a rest that is shorter than half a block.
        inner = np.arange(BLOCK_TOKENS, total - BLOCK_TOKENS // 2 + 1, BLOCK_TOKENS)
    return Blocks(np.concatenate([[0], inner, [total]]).astype(np.int64), unit)


def losses_by_example(of_tokens: np.ndarray, counts: np.ndarray) -> BlockLosses:
    """The losses of examples in a row; `counts` (N,) are the scored tokens of each, some may have none."""
    counts = counts[counts > 0].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return BlockLosses(np.add.reduceat(of_tokens.astype(np.float64), starts), counts, "example")
