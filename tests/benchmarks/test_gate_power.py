"""The gate on simulated pairs of models, drawn from the losses of a few trained ones: a quick form of the benchmark."""

import numpy as np
import pytest
import torch

from benchmarks.gate_power import GAIN, Pairs, decisions, enough_blocks, real_losses, share
from gpt2ops.registry.comparison import NOT_ENOUGH

COUNT = 60


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    threads = torch.get_num_threads()
    try:
        return real_losses(models=3, steps=30)
    finally:
        torch.set_num_threads(threads)


def test_models_that_differ_by_the_luck_of_the_text_are_seldom_promoted(real) -> None:
    assert share(decisions(Pairs(real, real.shape[1], seed_luck=0.0), with_seeds=False, count=COUNT)) <= 0.05


def test_models_that_differ_by_their_seed_are_seldom_promoted_where_the_seeds_were_measured(real) -> None:
    assert share(decisions(Pairs(real, real.shape[1]), with_seeds=True, count=COUNT)) <= 0.05


def test_a_gain_of_one_percent_is_promoted_where_the_text_suffices_and_else_the_gate_says_so(real) -> None:
    blocks = enough_blocks(real)
    enough = Pairs(real, int(1.5 * blocks), seed_luck=0.0, gain=GAIN)
    assert share(decisions(enough, with_seeds=False, count=COUNT)) >= 0.8
    little = decisions(Pairs(real, max(5, blocks // 20), 0.0, GAIN), with_seeds=False, count=COUNT)
    better = [decision for decision in little if not decision.promoted and decision.found.difference < 0]
    assert better
    assert all(NOT_ENOUGH in decision.sentence for decision in better)
