"""Intervals against scipy's bootstrap, against a closed form, and by how often they hold the truth."""

import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_1samp

from gpt2core.evaluation.blocks import FEWEST_BLOCKS, BlockLosses
from gpt2ops.registry.scoring.uncertainty import difference, uncertainty


def losses(means, counts=None):
    means = np.asarray(means, float)
    counts = np.full(len(means), 512) if counts is None else np.asarray(counts)
    return BlockLosses(means * counts, counts, "512 tokens")


def drawn(blocks, seed=0, mean=4.0, spread=0.3):
    return np.random.default_rng(seed).normal(mean, spread, blocks)


def test_of_many_blocks_the_interval_is_that_of_scipy_s_percentile_bootstrap():
    counts = np.random.default_rng(1).integers(200, 900, 300)
    ours = uncertainty(losses(drawn(300), counts))
    data = (drawn(300) * counts, counts)
    found = bootstrap(
        data, lambda sums, n, axis=-1: sums.sum(axis=axis) / n.sum(axis=axis), paired=True, method="percentile",
        n_resamples=5000, rng=0,
    )  # fmt: skip
    assert ours.stderr == pytest.approx(found.standard_error, rel=0.05)
    interval = np.log([ours.perplexity_low, ours.perplexity_high])
    width = found.confidence_interval.high - found.confidence_interval.low
    assert interval == pytest.approx(list(found.confidence_interval), abs=0.1 * width)


def test_the_p_value_is_near_that_of_a_paired_t_test():
    for shift in (0.0, 0.01, 0.02, 0.04):
        one = drawn(100)
        other = one + np.random.default_rng(2).normal(shift, 0.1, 100)
        found = difference(losses(one), losses(other))
        assert found.p_value == pytest.approx(ttest_1samp(one - other, 0).pvalue, abs=0.03)
        assert found.is_sure == (found.p_value < 0.05)


@pytest.mark.parametrize("blocks", [FEWEST_BLOCKS, 10, 40])
def test_equal_models_are_told_apart_by_chance_as_seldom_as_the_confidence_says(blocks):
    rows = np.random.default_rng(3).normal(0, 0.1, (300, blocks))
    better = [
        (found := difference(losses(4 + row), losses(np.full(blocks, 4.0)))).is_sure and found.difference < 0
        for row in rows
    ]
    assert np.mean(better) <= 0.05


def test_the_same_blocks_drawn_for_both_models_tell_more_than_two_intervals():
    one = drawn(60)
    found = difference(losses(one), losses(one + drawn(60, 4, mean=0.01, spread=0.02)))
    apart = uncertainty(losses(one))
    assert found.is_sure
    assert apart.stderr > abs(found.difference)


def test_what_would_do_does():
    """So many times the text, and the difference is told apart in about four of five cases."""
    one, generator = drawn(40), np.random.default_rng(5)
    apart = generator.normal(0.01, 0.05, 40)
    found = difference(losses(one), losses(one + apart))
    assert not found.is_sure
    blocks = round(40 * found.times_more)
    told = [
        difference(losses(np.zeros(blocks)), losses(generator.normal(-found.difference, apart.std(), blocks))).is_sure
        for _ in range(100)
    ]
    assert 0.65 < np.mean(told) < 0.95


def test_seeds_that_lie_far_apart_leave_a_difference_to_luck():
    one = drawn(60)
    two = losses(one + drawn(60, 4, mean=0.03, spread=0.02))
    assert difference(losses(one), two).is_sure
    assert difference(losses(one), two, seed_stdev=0.0005, seeds=5).is_sure
    lucky = difference(losses(one), two, seed_stdev=0.03, seeds=5)
    assert not lucky.is_sure
    assert lucky.times_more is None


def test_equal_models_do_not_differ():
    found = difference(losses(drawn(30)), losses(drawn(30)))
    assert (found.difference, found.interval, found.p_value, found.times_more) == (0.0, (0.0, 0.0), 1.0, None)
    assert not found.is_sure


@pytest.mark.parametrize("values", [[4.0], drawn(FEWEST_BLOCKS - 1), [*drawn(30), np.inf]])
def test_too_few_blocks_or_infinite_losses_have_no_interval(values):
    assert uncertainty(losses(values)) is None
    found = difference(losses(values), losses(np.full(len(values), 4.1)))
    assert found.interval is None
    assert not found.is_sure


def test_losses_of_different_blocks_are_not_compared():
    with pytest.raises(ValueError, match="different blocks"):
        difference(losses(drawn(6)), losses(drawn(7)))


def test_more_blocks_than_are_drawn_apart_give_the_same_error():
    values = drawn(5000)
    assert uncertainty(losses(values)).stderr == pytest.approx(values.std() / 5000**0.5, rel=0.1)
