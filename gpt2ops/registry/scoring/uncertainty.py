"""How far a loss, or the difference of two models' losses, could be the luck of the text that was held out.

Blocks of the text are drawn with replacement (Künsch 1989, "The jackknife and the bootstrap for general stationary
observations"), for two models the same ones: paired bootstrap resampling (Koehn 2004, "Statistical significance tests
for machine translation evaluation"). The percentiles are expanded for few blocks (Hesterberg 2015, "What teachers
should know about the bootstrap", section 3.4).
"""

import math
from dataclasses import dataclass

import numpy as np

from gpt2core.evaluation.blocks import FEWEST_BLOCKS, BlockLosses

CONFIDENCE = 0.95
DRAWS = 10_000
_MOST_BLOCKS = 300  # of more, neighbours are drawn together
_DRAWS_AT_ONCE = 500
_SEED = 0  # the same losses always have the same interval
_POWER = 0.8


@dataclass(frozen=True)
class Uncertainty:
    """Of a mean loss: standard error, and an interval of the perplexity."""

    stderr: float
    perplexity_low: float
    perplexity_high: float


@dataclass(frozen=True)
class Difference:
    """Loss of one model minus that of another on the same blocks, in nats per token; below 0 the first is better.

    `interval` and `p_value` (two-sided, of no difference) are None for fewer than FEWEST_BLOCKS blocks.
    `times_more` is how many times as much text would tell so small a difference from none four times in five; None
    where no text would: for equal losses, or seeds that lie further apart.
    """

    difference: float
    blocks: int
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    times_more: float | None = None

    @property
    def is_sure(self) -> bool:
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def uncertainty(losses: BlockLosses, confidence: float = CONFIDENCE) -> Uncertainty | None:
    """None for fewer than FEWEST_BLOCKS blocks, or losses that are not finite."""
    if len(losses) < FEWEST_BLOCKS or not np.isfinite(losses.sums).all():
        return None
    draws, blocks = _draw(losses.sums, losses.counts)
    low, high = _interval(draws, blocks, confidence)
    stderr = float(draws.std() * math.sqrt(blocks / (blocks - 1)))
    return Uncertainty(stderr, math.exp(min(low, 700.0)), math.exp(min(high, 700.0)))


def difference(
    first: BlockLosses, second: BlockLosses, confidence: float = CONFIDENCE, *, seed_stdev: float = 0.0, seeds: int = 0
) -> Difference:
    """`seed_stdev` is how far `seeds` trainings of one recipe lie apart: luck that each of the two models had too.

    Raises ValueError for losses of different blocks.
    """
    if not np.array_equal(first.counts, second.counts):
        raise ValueError("the losses are of different blocks")
    sums = first.sums - second.sums
    mean, blocks = float(sums.sum() / first.counts.sum()), len(first)
    if blocks < FEWEST_BLOCKS or not np.isfinite(sums).all():
        return Difference(mean, blocks)
    draws, drawn = _draw(sums, first.counts)
    text_stderr = float(draws.std() * math.sqrt(drawn / (drawn - 1)))
    if seed_stdev > 0 and seeds > 1:
        luck = np.random.default_rng(_SEED + 1).standard_t(seeds - 1, len(draws))
        draws = draws + math.sqrt(2) * seed_stdev * luck
    return Difference(
        mean,
        blocks,
        _interval(draws, drawn, confidence),
        _p_value(draws, drawn),
        _times_more(mean, text_stderr, math.sqrt(2) * seed_stdev, confidence),
    )


def _draw(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, int]:
    """Means (DRAWS,) of blocks drawn with replacement, and of how many blocks."""
    if len(sums) > _MOST_BLOCKS:
        starts = np.linspace(0, len(sums), _MOST_BLOCKS, endpoint=False).astype(np.int64)
        sums, counts = np.add.reduceat(sums, starts), np.add.reduceat(counts, starts)
    generator, blocks = np.random.default_rng(_SEED), len(sums)
    draws = []
    for _ in range(DRAWS // _DRAWS_AT_ONCE):
        chosen = generator.integers(blocks, size=(_DRAWS_AT_ONCE, blocks))
        draws.append(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1))
    return np.concatenate(draws), blocks


def _interval(draws: np.ndarray, blocks: int, confidence: float) -> tuple[float, float]:
    from scipy.stats import norm, t

    width = t.isf((1 - confidence) / 2, blocks - 1) * math.sqrt(blocks / (blocks - 1))
    tail = float(norm.sf(width))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _p_value(draws: np.ndarray, blocks: int) -> float:
    """The level at which the interval just touches 0."""
    from scipy.stats import norm, t

    if not draws.any():
        return 1.0
    beyond = min(int((draws >= 0).sum()), int((draws <= 0).sum()))
    width = norm.isf((beyond + 1) / (len(draws) + 1)) * math.sqrt((blocks - 1) / blocks)
    return float(min(1.0, 2 * t.sf(width, blocks - 1)))


def _times_more(mean: float, text_stderr: float, seed_stderr: float, confidence: float) -> float | None:
    from scipy.stats import norm

    allowed = (mean / (norm.isf((1 - confidence) / 2) + norm.isf(1 - _POWER))) ** 2 - seed_stderr**2
    return text_stderr**2 / allowed if allowed > 0 else None
