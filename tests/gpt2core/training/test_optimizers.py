"""Schedules as literal tables and against torch's; parameter groups; the optimizer's state survives a file."""

import numpy as np
import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.model import GPT
from gpt2core.training.muon import BatchedMuon, Fp32Muon, orthogonalised
from gpt2core.training.optimizers import (
    build_optimizers,
    learning_rate_factor,
    load_optimizer_tensors,
    optimizer_tensors,
)

TINY = GPTConfig(31, 8, n_layer=1, n_head=2, n_embd=8, drop_rate=0.0)
SETTINGS = {"learning_rate": 1e-3, "muon_learning_rate": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.1}


def factors(schedule: str, steps: list[int], total: int, warmup: int | None, floor: float = 0.1) -> list[float]:
    return [
        learning_rate_factor(
            step, schedule=schedule, total_steps=total, warmup_steps=warmup, floor=floor, decay_fraction=0.2
        )
        for step in steps
    ]


@pytest.mark.parametrize("total", [10, 101, 5053])
def test_onecycle_is_torchs(total: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, pct_start=0.3)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < total:
            reference.step()
    # torch's peak may lie between two steps; ours is on one.
    ours = factors("onecycle", list(range(total)), total, None, floor=1 / 25 / 1e4)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(expected), atol=0.12 if total == 10 else 0.02, rtol=0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.55, 100: 0.1}),
        ("linear", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.55, 100: 0.1}),
        ("wsd", {0: 0.1, 9: 1.0, 50: 1.0, 80: 1.0, 90: 0.55, 100: 0.1}),
        ("constant", {0: 0.1, 9: 1.0, 50: 1.0, 100: 1.0}),
    ],
)
def test_schedules_pass_through_their_landmarks(schedule: str, expected: dict[int, float]) -> None:
    got = factors(schedule, list(expected), 101, 10)
    assert got == pytest.approx(list(expected.values()), abs=0.003)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_runs_have_a_sane_rate(schedule: str, total: int) -> None:
    assert all(0 < factor <= 1 for factor in factors(schedule, list(range(total)), total, None))


def test_only_matrices_decay_and_muon_takes_the_blocks_matrices() -> None:
    model = GPT(TINY)
    names = {parameter: name for name, parameter in model.named_parameters()}
    (adamw,) = build_optimizers(model, name="adamw", **SETTINGS)
    decayed = {names[p] for g in adamw.param_groups if g["weight_decay"] > 0 for p in g["params"]}
    assert decayed == {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    rest, muon = build_optimizers(model, name="muon", **SETTINGS)
    assert {names[p] for g in muon.param_groups for p in g["params"]} == {
        f"h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    together = [p for o in (rest, muon) for g in o.param_groups for p in g["params"]]
    assert len(together) == len(set(together)) == len(list(model.parameters()))


def test_adafactor_holds_next_to_nothing_beside_the_weights() -> None:
    sizes = {}
    for name in ("adamw", "adafactor"):
        torch.manual_seed(0)
        model = GPT(GPTConfig(211, 16, n_layer=1, n_head=2, n_embd=64))
        (optimizer,) = build_optimizers(model, name=name, **SETTINGS)
        ids = torch.randint(211, (2, 9))
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        sizes[name] = sum(tensor.numel() for tensor in optimizer_tensors([optimizer], model).values())
    assert sizes["adafactor"] < 0.05 * sizes["adamw"]


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_state_restored_from_tensors_continues_bit_for_bit(name: str) -> None:
    def steps(model: GPT, optimizers: list[torch.optim.Optimizer], seeds: range) -> None:
        for seed in seeds:
            ids = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(seed))
            model(ids[:, :-1], ids[:, 1:]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    torch.manual_seed(0)
    model = GPT(TINY)
    optimizers = build_optimizers(model, name=name, **SETTINGS)
    steps(model, optimizers, range(3))
    other = GPT(TINY)
    other.load_state_dict(model.state_dict())
    restored = build_optimizers(other, name=name, **SETTINGS)
    load_optimizer_tensors(restored, other, optimizer_tensors(optimizers, model))
    steps(model, optimizers, range(3, 6))
    steps(other, restored, range(3, 6))
    for (key, expected), got in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, got), key


SHAPES = [(24, 24), (24, 72), (96, 24)]


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalising_applies_its_polynomial_to_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = np.linalg.svd(matrix.double().numpy() / np.linalg.norm(matrix), full_matrices=False)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    expected = torch.from_numpy((left * values) @ right).float()
    torch.testing.assert_close(orthogonalised(matrix, (a, b, c), 5, 1e-7), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("own", [Fp32Muon, BatchedMuon])
def test_our_muon_goes_where_torchs_goes_and_leaves_the_same_state(own: type[torch.optim.Muon]) -> None:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in (*SHAPES, *SHAPES)]
    gone, states = {}, {}
    for kind in (torch.optim.Muon, own):
        matrices = [torch.nn.Parameter(matrix.clone()) for matrix in start]
        optimizer = kind(matrices, lr=0.02, weight_decay=0.1)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            for matrix in matrices:
                matrix.grad = torch.randn(matrix.shape, generator=generator)
            optimizer.step()
        gone[kind] = [matrix.detach() - was for matrix, was in zip(matrices, start, strict=True)]
        states[kind] = optimizer.state_dict()
    for torchs, ours in zip(gone[torch.optim.Muon], gone[own], strict=True):
        assert (torchs - ours).norm() < 0.02 * torchs.norm()  # bf16 rounds by 0.4 % five times
    torch.testing.assert_close(states[own], states[torch.optim.Muon], rtol=0, atol=0)
