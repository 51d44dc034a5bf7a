"""The seed of a step: the same everywhere, and its own for each seed, step and rank."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from gpt2core.training.step import step_seed


@pytest.mark.parametrize(("seed", "step", "rank"), [(0, 0, 0), (42, 0, 0), (42, 7, 1), (2**32 - 1, 3, 2)])
def test_the_seed_is_that_of_numpys_spawned_children(seed, step, rank) -> None:
    child = np.random.SeedSequence(seed).spawn(step + 1)[step].spawn(rank + 1)[rank]
    assert step_seed(seed, step, rank) == child.generate_state(1, np.uint64)[0]


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_the_seed_stays_what_it_is_today_in_every_process(hash_seed) -> None:
    code = "from gpt2core.training.step import step_seed; print(step_seed(42, 640, 0), step_seed(42, 640, 1))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["9968894009992974391", "1673899358400528908"]


def test_neighbouring_seeds_steps_and_ranks_share_no_seed() -> None:
    # Powers of two beside small numbers: what is one word here may be two there.
    seeds, steps, ranks = [0, 1, 2, 41, 42, 43, 2**32 - 1, 2**32, 2**32 + 1], range(200), range(8)
    found = {step_seed(*key) for key in itertools.product(seeds, steps, ranks)}
    assert len(found) == len(seeds) * len(steps) * len(ranks)
    assert all(0 <= seed < 2**64 for seed in found)
    assert len({seed & 0xFFFF_FFFF for seed in found}) == len(found)  # torch's CPU generator takes the lower 32 bits
