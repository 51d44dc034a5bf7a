"""The step that becomes a CUDA graph computes what the plain one computes; on a CPU its body runs without a graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.training.graphed_step import GraphedStep, graph_obstacle, make_train_step
from gpt2core.training.spikes import LossMonitor
from gpt2core.training.step import StepResult, TrainStep
from tests.support.training import CONFIG, CPU

RUN = Runtime(CPU, "bf16", "for the test")
GPU = Runtime(torch.device("cuda"), "bf16", "for the test")


def batch(index: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(index).integers(0, 23, (4, 9))
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def step_of(kind: type[TrainStep], **changes: object) -> TrainStep:
    torch.manual_seed(0)
    model = GPT(GPTConfig(23, 16, n_layer=2, n_head=2, n_embd=16, drop_rate=0.1))
    step = kind(model, replace(CONFIG, **changes), RUN, 20)
    step.prepare()
    return step


def takes(step: TrainStep, monitor: LossMonitor, indices: range) -> list[StepResult]:
    taken = [step.update(index, batch(index), monitor, lambda: False) for index in indices]
    assert None not in taken
    return [one for one in taken if one is not None]


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 1}, {"max_grad_norm": None}])
def test_losses_norms_rates_and_weights_are_those_of_the_plain_step(changes: dict[str, object]) -> None:
    plain, graphed = step_of(TrainStep, **changes), step_of(GraphedStep, **changes)
    assert takes(graphed, LossMonitor(None), range(6)) == takes(plain, LossMonitor(None), range(6))
    assert graphed.learning_rate == plain.learning_rate
    for ours, expected in zip(graphed.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, expected)
    tensors = plain.optimizer_tensors()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in graphed.optimizer_tensors().items())


def test_a_batch_that_is_passed_by_or_gives_no_number_changes_nothing() -> None:
    graphed, monitor = step_of(GraphedStep), LossMonitor(None)
    takes(graphed, monitor, range(2))
    before = [parameter.clone() for parameter in graphed.model.parameters()]
    moments = {name: tensor.clone() for name, tensor in graphed.optimizer_tensors().items()}
    monitor.exclude([2], monitor.state)
    (passed,) = takes(graphed, monitor, range(2, 3))
    assert not passed.decision.apply_update
    with torch.no_grad():
        kept = graphed.model.ln_f.bias.clone()
        graphed.model.ln_f.bias.fill_(torch.inf)
    (broken,) = takes(graphed, monitor, range(3, 4))
    assert not broken.decision.finite
    with torch.no_grad():
        graphed.model.ln_f.bias.copy_(kept)
    assert all(torch.equal(a, b) for a, b in zip(graphed.model.parameters(), before, strict=True))
    assert all(torch.equal(tensor, moments[name]) for name, tensor in graphed.optimizer_tensors().items())


def test_it_goes_on_from_a_checkpoint_as_the_plain_step_does() -> None:
    plain, graphed, later = step_of(TrainStep), step_of(GraphedStep), step_of(GraphedStep)
    takes(graphed, LossMonitor(None), range(3))
    later.restore(graphed.model, graphed.optimizer_tensors(), graphed.scaler.state_dict())
    assert takes(later, LossMonitor(None), range(3, 6)) == takes(plain, LossMonitor(None), range(6))[3:]


def test_a_run_that_is_interrupted_takes_no_step() -> None:
    assert step_of(GraphedStep).update(0, batch(0), LossMonitor(None), lambda: True) is None


@pytest.mark.parametrize(
    ("changes", "run", "reason"),
    [
        ({}, RUN, "the device is cpu"),
        ({}, replace(GPU, precision="fp16"), "fp16"),
        ({"optimizer": "muon"}, GPU, "muon"),
        ({"spike_rollback": 6.0}, GPU, "spike_rollback"),
        ({}, GPU, None),
    ],
)
def test_what_a_graph_cannot_do_is_named(changes: dict[str, object], run: Runtime, reason: str | None) -> None:
    found = graph_obstacle(replace(CONFIG, **changes), run)
    assert found is None if reason is None else reason in (found or "")


def test_a_graph_that_cannot_be_is_refused_where_it_is_asked_for() -> None:
    model = GPT(GPTConfig(23, 16, n_layer=1, n_head=2, n_embd=16))
    with pytest.raises(UserError, match=r"cuda_graph \('on'\) is impossible: the device is cpu"):
        make_train_step(model, replace(CONFIG, cuda_graph="on"), RUN, 20, 32)
    assert type(make_train_step(model, CONFIG, RUN, 20, 32)) is TrainStep
