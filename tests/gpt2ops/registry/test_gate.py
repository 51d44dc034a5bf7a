"""The gate's rules, on plain numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2core.config import GPTConfig
from gpt2core.evaluation.blocks import BlockLosses
from gpt2core.model import GPT
from gpt2ops.params.sections import Gate
from gpt2ops.registry.gate import judge
from gpt2ops.registry.held_out import Champion, held_out_of
from gpt2ops.registry.scoring.gate_score import gate_score
from tests.support.training import ArrayTokens

GATE = {"split": "test", "data_sha256": "ab", "protocol": "own context"}


def evaluation(perplexity=20.0, **changes):
    return {
        "train": {"loss": 2.5, "perplexity": 12.2, "tokens": 1000},
        "val": {"loss": 3.0, "perplexity": 21.0, "tokens": 100},
        "test": {"loss": 3.0, "perplexity": perplexity, "tokens": 100},
        "gate": {**GATE, "perplexity": perplexity},
        "verbatim_recall": 0.02,
        "generalisation_gap": 0.5,
        "verdict": "generalising",
        "data_sha256": "ab",
        **changes,
    }


TRAIN = {"target_loss": 4.0, "target_reached": True}


def losses(perplexity, blocks=40, spread=0.0, seed=0):
    """Blocks whose mean loss gives this perplexity; those of one seed and spread vary alike."""
    noise = np.random.default_rng(seed).normal(0, spread, blocks)
    return BlockLosses(512 * (math.log(perplexity) + noise - noise.mean()), np.full(blocks, 512), "512 tokens")


def champion(perplexity, **changes):
    measured = math.isfinite(perplexity)
    return Champion("3", perplexity, **{"losses": losses(perplexity) if measured else None, **changes})


def verdict(champion=None, perplexity=20.0, train=TRAIN, changes=None, own=None, **thresholds):
    own = losses(perplexity) if own is None else own
    return judge(evaluation(perplexity, **(changes or {})), train, champion, Gate(**thresholds), own)


def test_the_first_model_becomes_champion():
    result = verdict(champion=None)
    assert result.passed
    assert result.reasons == ["There was no champion yet. Its held-out perplexity is 20.00."]


@pytest.mark.parametrize(
    ("mine", "theirs", "min_improvement", "passed", "word"),
    [
        (20.0, 25.0, 0.0, True, "is better: 20.00 against 25.00"),
        (25.0, 20.0, 0.0, False, "is worse: 25.00 against 20.00"),
        (20.0, 20.0, 0.0, False, "is equal"),
        (19.0, 20.0, 0.1, False, "better by 5.0% only"),
        (18.0, 20.0, 0.1, True, "is better"),
        (15.0, 20.0, 0.1, True, "is better"),
    ],
)
def test_a_champion_falls_only_to_a_better_held_out_perplexity(mine, theirs, min_improvement, passed, word):
    result = verdict(champion(theirs), perplexity=mine, min_improvement=min_improvement)
    assert result.passed is passed
    assert any(word in reason for reason in result.reasons)
    assert any("version 3" in reason for reason in result.reasons)


def test_a_champion_that_cannot_be_compared_stays():
    result = verdict(Champion("3", None, problem="it was trained on other data and does not load"))
    assert not result.passed
    assert result.reasons == [
        "It cannot be compared with the champion (version 3): it was trained on other data and does not load."
    ]


@pytest.mark.parametrize("theirs", [float("nan"), float("inf")])
def test_a_champion_without_a_finite_perplexity_is_not_beaten_by_accident(theirs):
    assert not verdict(champion(theirs)).passed


def test_a_champion_measured_again_is_said_to_be():
    result = verdict(champion(30.0, measured_again=True))
    assert result.passed
    assert "measured again on this data" in result.reasons[0]


def test_registering_the_champion_again_keeps_it():
    assert verdict(Champion("3", 20.0, same_version=True)).passed


@pytest.mark.parametrize(
    ("thresholds", "changes", "train", "word"),
    [
        ({"max_perplexity": 19.0}, {}, TRAIN, "above register.gate.max_perplexity (19)"),
        ({"max_verbatim_recall": 0.01}, {}, TRAIN, "above register.gate.max_verbatim_recall (1%)"),
        ({"max_verbatim_recall": 0.5}, {"verbatim_recall": None}, TRAIN, "set evaluate.recall_passages"),
        ({"require_target": True}, {}, {"target_loss": 4.0, "target_reached": False}, "did not reach its target loss"),
        ({"require_target": True}, {}, {"target_loss": None, "target_reached": None}, "none was set"),
        ({"max_perplexity": 30.0}, {"gate": None}, TRAIN, "No text was held out"),
    ],
)
def test_a_broken_threshold_refuses_even_the_first_model_and_names_the_key(thresholds, changes, train, word):
    result = verdict(None, changes=changes, train=train, **thresholds)
    assert not result.passed
    assert word in result.reasons[0]


def test_kept_thresholds_do_not_refuse():
    assert verdict(None, max_perplexity=20.0, max_verbatim_recall=0.02, require_target=True).passed


def test_every_refusal_is_listed():
    result = verdict(champion(10.0), max_perplexity=15.0, require_target=True, train={"target_loss": 1.0})
    assert len(result.reasons) == 3


def test_without_held_out_text_only_the_first_model_becomes_champion():
    nothing = {"val": None, "test": None, "gate": None}
    assert verdict(None, changes=nothing).passed
    assert not verdict(champion(20.0), changes=nothing).passed


def test_a_memorising_run_is_named_and_refused_only_where_a_threshold_says_so():
    changes = {"verdict": "memorising", "verbatim_recall": 0.9, "generalisation_gap": 5.25}
    named = verdict(None, changes=changes)
    assert named.passed
    assert named.memorising
    assert "memorises its training text: it repeats 90% of the training passages" in " ".join(named.reasons)
    assert "5.25 above its training loss" in " ".join(named.reasons)
    assert not verdict(None, changes=changes, max_verbatim_recall=0.5).passed
    assert not verdict(None).memorising


@pytest.mark.parametrize("changes", [{"data_sha256": "cd"}, {"protocol": "another"}, {"split": "val"}])
def test_perplexities_of_other_data_protocol_or_split_are_not_comparable(changes):
    other = {**GATE, "perplexity": 20.0, **changes}
    assert held_out_of(evaluation()).comparable_to(held_out_of(evaluation(33.0)))
    assert not held_out_of(evaluation()).comparable_to(held_out_of(evaluation(gate=other)))


@settings(deadline=None, max_examples=30)
@given(
    models=st.lists(
        st.tuples(st.sampled_from([4, 8, 16, 32]), st.integers(0, 99)), min_size=3, max_size=4, unique=True
    ),
    min_improvement=st.sampled_from([0.0, 0.001]),
)
def test_the_gate_puts_models_of_any_context_in_order(models, min_improvement):
    """No two each beat the other, and no three in a circle, whichever is the challenger."""
    split = ArrayTokens(3000, 3)
    scores = []
    for block_size, seed in models:
        torch.manual_seed(seed)
        model = GPT(GPTConfig(23, block_size, n_layer=1, n_head=2, n_embd=8, drop_rate=0.0)).eval()
        scores.append(gate_score(model, split, block_size, 3000))
    numbers = range(len(models))
    beats = {
        (one, other)
        for one in numbers
        for other in numbers
        if one != other
        and verdict(
            champion(scores[other].perplexity, losses=scores[other].blocks),
            scores[one].perplexity,
            own=scores[one].blocks,
            min_improvement=min_improvement,
        ).passed
    }
    for one, other in beats:
        assert (other, one) not in beats
        assert all((third, one) not in beats or (other, third) not in beats for third in numbers)


def test_the_verdict_survives_json():
    import json

    assert json.loads(json.dumps(verdict(None).as_dict()))["passed"] is True


def test_a_better_point_value_that_may_be_luck_leaves_the_champion_and_says_how_much_text_would_do():
    changes = {"gate": {**GATE, "perplexity": 19.9, "tokens": 20_479, "split_tokens": 20_479}}
    lucky = verdict(champion(20.0), 19.9, own=losses(19.9, spread=0.05), changes=changes)
    assert not lucky.passed
    assert "not enough text to tell" in lucky.reasons[0]
    found = lucky.comparison.as_dict()
    assert found["interval"][0] < found["difference"] < 0 < found["interval"][1]
    assert found["difference"] == pytest.approx(math.log(19.9 / 20))
    assert found["p_value"] > 0.05
    assert found["blocks"] == 40
    assert found["promoted_because"] is None
    times = lucky.comparison.found.times_more
    assert f"{times * 20_479:,.0f} tokens" in lucky.reasons[0]
    more = verdict(champion(20.0, losses=losses(20.0, 4000)), 19.9, own=losses(19.9, 4000, 0.05), changes=changes)
    assert more.passed
    assert more.comparison.as_dict()["promoted_because"] == more.reasons[0]


def test_the_confidence_decides():
    own = losses(19.7, spread=0.05)
    p_value = verdict(champion(20.0), 19.7, own=own).comparison.found.p_value
    assert verdict(champion(20.0), 19.7, own=own, confidence=1 - p_value - 0.02).passed
    assert not verdict(champion(20.0), 19.7, own=own, confidence=min(1 - p_value + 0.02, 0.999)).passed


def test_a_difference_within_that_of_the_seeds_is_luck():
    seeds = {"stdev": 0.05, "runs": {"1": {}, "2": {}, "3": {}, "4": {}}}
    assert verdict(champion(20.0), 19.0).passed
    result = verdict(champion(20.0), 19.0, train={**TRAIN, "seeds": seeds})
    assert not result.passed
    assert "more luck than that in the seeds of one recipe" in result.reasons[0]
    assert result.comparison.as_dict()["seed_stdev"] == 0.05
    assert verdict(champion(20.0), 12.0, train={**TRAIN, "seeds": seeds}).passed


def test_the_same_recipe_with_another_seed_is_no_better_unless_the_seeds_were_measured():
    refused = verdict(champion(20.0, same_recipe=True), 18.0)
    assert not refused.passed
    assert "which of two seeds does better is luck" in refused.reasons[0]
    seeds = {"stdev": 0.001, "runs": {"1": {}, "2": {}, "3": {}}}
    assert verdict(champion(20.0, same_recipe=True), 18.0, train={**TRAIN, "seeds": seeds}).passed


def test_one_block_does_not_decide():
    one = {"own": losses(18.0, 1), "champion": champion(20.0, losses=losses(20.0, 1))}
    result = verdict(perplexity=18.0, **one)
    assert not result.passed
    assert "not enough text to tell (blocks of it: 1, needed 5" in result.reasons[0]


def test_equal_models_tie_and_the_champion_stays():
    result = verdict(champion(20.0), 20.0)
    assert not result.passed
    assert "A tie leaves the champion" in result.reasons[0]
    assert result.comparison.as_dict()["difference"] == 0


def test_losses_of_other_blocks_are_not_compared():
    result = verdict(champion(20.0, losses=losses(20.0, 39)), 18.0)
    assert not result.passed
    assert "no losses of both on the same blocks" in result.reasons[0]
