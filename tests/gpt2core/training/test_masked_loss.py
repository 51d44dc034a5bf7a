"""Every trained token of a batch has the same weight, whatever it is cut into and whatever is masked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from gpt2core.config import GPTConfig
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.training.graphed_step import graph_obstacle, make_train_step
from gpt2core.training.spikes import LossMonitor
from gpt2core.training.step import TrainStep
from tests.support.training import CONFIG, CPU

RUN = Runtime(CPU, "fp32", "for the test")
ROWS, LENGTH = 6, 11
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def model_of(seed: int, tied: bool = True) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(29, 16, n_layer=2, n_head=2, n_embd=16, drop_rate=0.0, tie_word_embeddings=tied))


def masked_batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row has another share of trained targets; one has none."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, 29, (ROWS, LENGTH + 1))
    targets = tokens[:, 1:].copy()
    targets[random.random((ROWS, LENGTH)) > random.random((ROWS, 1))] = -1
    targets[random.integers(ROWS)] = -1
    targets[0, 0] = tokens[0, 1]
    return tokens[:, :-1].copy(), targets


def gradients_of(step: TrainStep, batch: tuple[np.ndarray, ...]) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients of an update, which is kept from changing the weights."""
    taken: list[torch.Tensor] = []
    step._apply = lambda apply_update: taken.extend(p.grad.clone() for p in step.model.parameters())
    step.prepare()
    result = step.update(0, batch, LossMonitor(None), lambda: False)
    assert result is not None
    return result.train_loss, taken


def by_torch(model: GPT, batch: tuple[np.ndarray, np.ndarray]) -> tuple[float, list[torch.Tensor]]:
    """Independent: all logits, one example at a time, torch's own cross-entropy, summed."""
    ids, targets = map(torch.from_numpy, batch)
    loss = (
        sum(
            F.cross_entropy(model(row[None])[0], wanted, ignore_index=-1, reduction="sum")
            for row, wanted in zip(ids, targets, strict=True)
        )
        / (targets >= 0).sum()
    )
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("own_kernels", [True, False])
@pytest.mark.parametrize("micro", [None, 1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_those_of_one_example_at_a_time_by_torch(seed: int, micro: int | None, own_kernels: bool) -> None:
    batch, changes = masked_batch(seed), {"micro_batch_size": micro, "own_kernels": own_kernels, "max_grad_norm": None}
    step = TrainStep(model_of(seed), replace(CONFIG, **changes), RUN, 20)
    loss, found = gradients_of(step, batch)
    expected_loss, expected = by_torch(model_of(seed), batch)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, **CLOSE)


def test_an_update_of_packed_rows_hands_each_micro_step_its_segments() -> None:
    """A row of two halves that do not see each other trains as two rows."""
    ids, targets = masked_batch(5)
    halves = np.array([[0] * 5 + [1] * 6] * ROWS)
    step = TrainStep(model_of(5), replace(CONFIG, micro_batch_size=2, max_grad_norm=None), RUN, 20)
    loss, found = gradients_of(step, (ids, targets, halves))
    apart = np.full((2 * ROWS, 6), 0), np.full((2 * ROWS, 6), -1)
    for whole, cut in zip((ids, targets), apart, strict=True):
        cut[:ROWS, :5], cut[ROWS:] = whole[:, :5], whole[:, 5:]
    expected_loss, expected = by_torch(model_of(5), apart)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, **CLOSE)


def test_the_head_computes_no_logits_of_masked_tokens(monkeypatch) -> None:
    batch, rows = masked_batch(1), []
    from gpt2core import model as module

    plain = module.head_loss
    monkeypatch.setattr(module, "head_loss", lambda x, *others: rows.append(len(x)) or plain(x, *others))
    gradients_of(TrainStep(model_of(1), replace(CONFIG, micro_batch_size=None), RUN, 20), batch)
    assert rows == [int((batch[1] >= 0).sum())]


def test_a_batch_of_masked_examples_is_no_cuda_graph() -> None:
    gpu = Runtime(torch.device("cuda"), "bf16", "for the test")
    assert graph_obstacle(CONFIG, gpu) is None
    assert "trained tokens" in str(graph_obstacle(CONFIG, gpu, masked=True))
    assert type(make_train_step(model_of(0), CONFIG, RUN, 20, 32, masked=True)) is TrainStep


def _rank(rank: int, ranks: int, address: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    try:
        step = TrainStep(model_of(3, tied=False), replace(CONFIG, micro_batch_size=2, max_grad_norm=None), RUN, 20)
        loss, found = gradients_of(step, lopsided())
        if rank == 0:
            results.put((loss, [tensor.numpy() for tensor in found]))
            results.join()
    finally:
        dist.destroy_process_group()


def lopsided() -> tuple[np.ndarray, np.ndarray]:
    """The last rows of the second of two ranks have no trained token."""
    ids, targets = masked_batch(3)
    targets[3], targets[5] = -1, -1
    return ids, targets


@pytest.mark.slow
def test_two_ranks_with_uneven_masks_give_the_gradients_of_one(tmp_path) -> None:
    context = mp.get_context("spawn")
    results = context.JoinableQueue()
    ranks = mp.start_processes(
        _rank, args=(2, f"file://{tmp_path}/meeting", results), nprocs=2, join=False, start_method="spawn"
    )
    loss, found = results.get(timeout=120)
    results.task_done()
    while not ranks.join():
        pass
    expected_loss, expected = by_torch(model_of(3, tied=False), lopsided())
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), wanted, **CLOSE)
