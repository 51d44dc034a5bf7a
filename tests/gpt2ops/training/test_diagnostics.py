"""Early warnings: healthy runs with noise say nothing, sick ones say what is wrong, once, and what to try."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2core.training.events import ROW_KEYS, Row
from gpt2ops.training.diagnostics import Diagnostics, RunFacts, TrainingWarning
from gpt2ops.training.references import LossReference, published_for

ROOT = Path(__file__).resolve().parents[3]
FACTS = RunFacts(
    total_steps=2000,
    tokens_per_step=512,
    learning_rate=1e-3,
    max_grad_norm=1.0,
    target_loss=None,
    best_by="val_loss",
    from_scratch=True,
    uniform_loss=math.log(50257),
    unigram_loss=6.25,
)
SEEDS = range(6)
Curve = Callable[[int], float]


def rows(
    loss: Curve,
    seed: int,
    *,
    steps: int = 2000,
    every: int = 10,
    noise: float = 0.08,
    gradient: Curve = lambda step: 1.2,
    speed: Curve = lambda step: 500.0,
    rate: Curve = lambda step: 1e-3 * min(1.0, step / 100),
) -> list[Row]:
    """A run's history: noise as batches have it, and now and then one that is much harder."""
    random = np.random.default_rng(seed)
    made = []
    for step in range(every, steps + 1, every):
        hard = 4 * noise if random.random() < 0.02 else 0.0
        made.append(
            dict.fromkeys(ROW_KEYS)
            | {
                "step": step,
                "tokens_seen": step * 512,
                "train_loss": loss(step) + hard + random.normal(0, noise),
                "learning_rate": rate(step),
                "grad_norm": gradient(step) * random.lognormal(0, 0.25) * (8 if random.random() < 0.01 else 1),
                "tokens_per_second": speed(step) * (1 - abs(random.normal(0, 0.08))),
            }
        )
    return made


def findings(history: list[Row], facts: RunFacts = FACTS) -> list[TrainingWarning]:
    diagnostics = Diagnostics(facts)
    return [finding for row in history for finding in diagnostics.row(row)]


def names(history: list[Row], facts: RunFacts = FACTS) -> list[str]:
    return [finding.name for finding in findings(history, facts)]


def healthy(step: int) -> float:
    """From scratch: down to token frequencies in the warm-up, then a power law (Kaplan et al. 2020)."""
    return 3.0 + 7.8 * (1 + step / 40) ** -0.6


HEALTHY: dict[str, dict[str, Any]] = {
    "power-law": {"loss": healthy},
    "noisy": {"loss": healthy, "noise": 0.4, "every": 1, "steps": 1000},
    "lingers-at-token-frequencies": {"loss": lambda step: 6.3 if step < 150 else 6.3 - 0.9 * (step / 150 - 1) ** 0.5},
    "fine-tuning": {"loss": lambda step: 3.4 + 0.8 * math.exp(-step / 60) - 0.0001 * step},
    "learns-by-heart-in-stairs": {"loss": lambda step: 3.5 * 0.8 ** (step // 160) + 0.02, "noise": 0.05},
    "at-its-floor": {"loss": lambda step: 0.05 + 9 * math.exp(-step / 100), "noise": 0.01},
    "gradients-shrink": {"loss": healthy, "gradient": lambda step: 5.0 * (1 + step / 50) ** -0.5 + 0.5},
    "clipped-a-little": {"loss": healthy, "gradient": lambda step: 2.0},
    "slow-evaluation": {"loss": healthy, "speed": lambda step: 100.0 if step % 200 == 0 else 500.0},
    "long-and-slow": {
        "loss": lambda step: 2.8 + 8 * (1 + step / 40) ** -0.45,
        "steps": 60_000,
        "every": 50,
        "noise": 0.03,
    },
}


@pytest.mark.parametrize("kind", HEALTHY)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_healthy_run_says_nothing(kind: str, seed: int) -> None:
    facts = replace(FACTS, total_steps=HEALTHY[kind].get("steps", 2000), from_scratch=kind != "fine-tuning")
    assert [finding.line() for finding in findings(rows(seed=seed, **HEALTHY[kind]), facts)] == []


def spike(step: int) -> float:
    return 1.0 if step < 800 else 20.0


SICK: dict[str, tuple[str, dict[str, Any], int]] = {
    "flat": ("loss_flat", {"loss": lambda step: max(4.6, healthy(step))}, 1500),
    "only-frequencies": ("only_frequencies", {"loss": lambda step: max(6.27, healthy(step))}, 800),
    "hardly-moves": ("only_frequencies", {"loss": lambda step: 10.8 - 2e-4 * step, "noise": 0.02}, 500),
    "diverges": ("loss_above_uniform", {"loss": lambda step: healthy(step) if step < 300 else 14.0}, 400),
    "rises": ("loss_rising", {"loss": lambda step: healthy(min(step, 600)) + max(0, step - 600) / 100}, 900),
    "explodes": ("gradients_exploding", {"loss": healthy, "gradient": spike}, 900),
    "clipped": ("always_clipped", {"loss": healthy, "gradient": lambda step: 12.0}, 800),
    "slows-down": ("throughput", {"loss": healthy, "speed": lambda step: 500.0 if step < 1000 else 200.0}, 1200),
}


@pytest.mark.parametrize("kind", SICK)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_sick_run_is_told_what_is_wrong_once_and_in_time(kind: str, seed: int) -> None:
    name, run, by_step = SICK[kind]
    found = findings(rows(seed=seed, **run))
    assert [finding.name for finding in found] == [name]
    assert found[0].step <= by_step
    assert "; try " in found[0].line()
    assert "\n" not in found[0].line()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_has_passed_and_comes_back_is_said_again(seed: int) -> None:
    def speed(step: int) -> float:
        return 150.0 if 600 < step <= 800 or step > 1400 else 500.0

    assert names(rows(healthy, seed, speed=speed)) == ["throughput", "throughput"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_resumed_run_says_nothing_twice_and_no_more_than_an_uninterrupted_one(seed: int) -> None:
    history = rows(seed=seed, **SICK["explodes"][1])
    whole = Diagnostics(FACTS)
    whole.replay(history)
    resumed = Diagnostics(FACTS)
    resumed.replay(history[:120])
    assert [finding.name for finding in resumed.findings] == ["gradients_exploding"]
    assert [finding for row in history[120:] for finding in resumed.row(row)] == []
    assert resumed.findings == whole.findings


def evaluated(values: list[tuple[float, float]], seed: int, noise: float) -> list[Row]:
    random = np.random.default_rng(seed)
    return [
        dict.fromkeys(ROW_KEYS)
        | {"step": 100 * (i + 1), "val_loss": val + random.normal(0, noise), "train_eval_loss": train}
        for i, (val, train) in enumerate(values)
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_learning_by_heart_names_the_best_step(seed: int) -> None:
    losses = [(6.0 - 0.2 * i if i < 5 else 5.2 + 0.12 * (i - 4), 6.0 - 0.3 * i) for i in range(12)]
    (finding,) = findings(evaluated(losses, seed, 0.01))
    assert finding.name == "overfitting"
    assert "at step 500" in finding.problem
    assert "step 500 is kept" in finding.advice
    (finding,) = findings(evaluated(losses, seed, 0.01), replace(FACTS, best_by="train_loss"))
    assert "train.best_by: val_loss" in finding.advice


@pytest.mark.parametrize("seed", SEEDS)
def test_a_held_out_loss_that_only_wavers_or_rises_with_the_training_loss_is_not_overfitting(seed: int) -> None:
    wavering = [(5.0 - 0.3 * math.log(1 + i), 5.0 - 0.2 * i) for i in range(20)]
    assert findings(evaluated(wavering, seed, 0.03)) == []
    assert findings(evaluated([(5.0 + 0.1 * i, 5.0 + 0.1 * i) for i in range(10)], seed, 0.01)) == []


def test_a_learning_rate_that_ends_before_the_target_is_reached_is_said_beforehand() -> None:
    facts = replace(FACTS, target_loss=0.1)

    def rate(step: int) -> float:
        return 1e-3 * min(1.0, step / 100) * max(0.0, 1 - step / 2000)

    (finding,) = findings(rows(healthy, 0, rate=rate), facts)
    assert (finding.name, finding.step) == ("learning_rate_zero", 1990)
    assert names(rows(lambda step: 0.09 + 9 * math.exp(-step / 100), 0, noise=0.005, rate=rate), facts) == []
    assert names(rows(lambda step: 10.82, 0, noise=0.02), replace(FACTS, learning_rate=1e-9)) == ["learning_rate_zero"]


@pytest.mark.parametrize(
    ("from_scratch", "loss", "words"),
    [
        (True, 10.9, None),
        (True, 4.0, "really new"),
        (True, 14.0, "run.precision"),
        (False, 4.1, None),
        (False, 6.6, None),  # hard text for these weights, but no more than that
        (False, 9.8, "model.init"),
    ],
)
def test_the_first_loss_fits_the_weights(from_scratch: bool, loss: float, words: str | None) -> None:
    found = Diagnostics(replace(FACTS, from_scratch=from_scratch)).first_loss(loss)
    assert [words in finding.advice for finding in found] == ([True] if words else [])


def test_the_default_run_says_nothing() -> None:
    # A copy: `make run` writes its own history to reports/, and a busy machine's speed may be worth a warning.
    history = json.loads((ROOT / "tests/support/fixtures/default_history.json").read_text())
    facts = replace(FACTS, total_steps=1200, learning_rate=3e-3, target_loss=4.4, best_by="train_loss")
    assert len(history) > 50
    assert findings(history, facts) == []


def test_a_row_takes_microseconds() -> None:
    history, diagnostics = rows(healthy, 0, steps=40_000), Diagnostics(FACTS)
    started_at = time.thread_time()
    for row in history:
        diagnostics.row(row)
    # A row is of ten steps of tens of milliseconds each.
    assert (time.thread_time() - started_at) / len(history) < 0.002


def test_a_loss_is_placed_between_knowing_nothing_and_token_frequencies() -> None:
    reference = LossReference(50257, 6.25, published_for(7_000_000, "bundled"))
    assert reference.place(11.0) == "above a uniform guess by 0.18"
    assert reference.place(8.0) == "above token frequencies by 1.75"
    assert reference.place(6.27) == "at token frequencies"
    assert reference.place(5.77) == "below token frequencies by 0.48"
    assert reference.lines() == [
        "loss to compare with: 10.82 for a uniform guess (ln 50,257), 6.25 for token frequencies alone",
        "published losses: GPT-2 124M 3.12 on OpenWebText (nanoGPT)",
    ]


def test_published_losses_are_of_the_nearest_size_and_the_same_text() -> None:
    assert [entry.loss for entry in published_for(800_000_000, "my.txt")] == [2.67]
    assert [entry.loss for entry in published_for(124_439_808, "tinyshakespeare")] == [3.12, 5.25, 4.11]
    assert {entry.text for entry in published_for(30_000_000, "tinystories")} == {"TinyStories"}
