"""A fixed sample of the cases of `python -m tests.harness.decoding_parity`, and that it can tell right from wrong."""

import pytest
import torch

from tests.harness import decoding_parity
from tests.harness.decoding_parity import ENDED, STRATEGIES, run_cases


def test_random_cases_give_the_tokens_of_transformers() -> None:
    outcomes = run_cases(80, seed=0, models=4)
    assert not [case for case in outcomes if case[1] == "different"]
    assert all(outcomes[strategy, "identical"] for strategy in STRATEGIES)
    assert sum(count for (_, outcome), count in outcomes.items() if outcome == "tie") <= 1
    assert sum(count for (_, outcome), count in outcomes.items() if outcome == ENDED) > 20


def test_beam_searches_end_at_the_step_at_which_transformers_ends_them() -> None:
    outcomes = run_cases(60, seed=2, models=2, strategies=["beam"])
    assert (outcomes["beam", "identical"], outcomes["beam", "tie"], outcomes["beam", "different"]) == (60, 0, 0)


@pytest.mark.parametrize(
    ("wrong_in", "outcome"), [((torch.float32, torch.float64), "different"), ((torch.float32,), "tie")]
)
def test_a_wrong_token_is_a_tie_only_where_fp64_agrees(monkeypatch, wrong_in, outcome) -> None:
    right = decoding_parity.generate

    def wrong(model, ids, *arguments, **options):
        output = right(model, ids, *arguments, **options)
        tokens = output if isinstance(output, torch.Tensor) else output.sequences
        if model.wte.weight.dtype in wrong_in:
            tokens[-1, -1] += 1
        return output

    monkeypatch.setattr(decoding_parity, "generate", wrong)
    outcomes = run_cases(8, seed=1, models=1)
    assert {name for (_, name), count in outcomes.items() if count and name != ENDED} == {outcome}
