"""Rows: select, crop and append in any order leave what a fresh pass over the same tokens gives."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.rows import branching as branching_rows
from gpt2core.decoding.rows import cached as rows_module
from gpt2core.decoding.rows import graphed as graphed_rows
from gpt2core.decoding.rows import kv_cache, opening
from gpt2core.decoding.rows.branching import BranchingRows
from gpt2core.decoding.rows.cached import CachedRows
from gpt2core.decoding.rows.graphed import GraphedRows
from gpt2core.decoding.rows.kv_cache import KVCache
from gpt2core.kernels.graphed_call import GraphedCall
from gpt2core.model import GPT


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=61, block_size=64, n_layer=2, n_head=2, n_embd=32, drop_rate=0.0)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(params=["plain", "packed", "graphed"])
def opened(request, model: GPT, monkeypatch) -> Callable[..., CachedRows]:
    """Rows of the model, as they are on each kind of machine."""
    if request.param == "graphed":  # by the body of the graph, without one; looking further on the way
        monkeypatch.setattr(rows_module, "fastest", lambda model, new_tokens: model)
        monkeypatch.setattr(graphed_rows, "FIRST_WINDOW", 4)
        monkeypatch.setattr(graphed_rows, "MIN_NEW_TOKENS", -1000)
        return partial(GraphedRows, model)
    return partial(CachedRows, model if request.param == "plain" else PackedGPT(model))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_select_crop_and_append_gives_what_a_fresh_pass_gives(
    model, opened, padded, seed, monkeypatch
) -> None:
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 7)  # so that the store grows on the way
    rng = random.Random(seed)
    torch.manual_seed(seed)
    ids = torch.randint(61, (3, 6))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :2] = 0
        mask[2, :4] = 0
    rows = opened(20, "refuse")
    with torch.inference_mode():
        rows.append(ids, mask)
        for _ in range(30):
            move = rng.choice(["append", "select", "crop"])
            if move == "select":
                kept = torch.tensor([rng.randrange(len(ids)) for _ in range(rng.randint(1, 6))])
                rows.select(kept)
                ids, mask = ids[kept], mask[kept]
            elif move == "crop" and rows.length > 7:
                length = rng.randint(6, rows.length)
                rows.crop(length)
                ids, mask = ids[:, :length], mask[:, :length]
            elif rows.length < 50:
                new = torch.randint(61, (len(ids), rng.randint(1, 3)))
                ids = torch.cat([ids, new], dim=1)
                mask = torch.cat([mask, torch.ones_like(new)], dim=1)
                fresh = model(ids, attention_mask=mask)
                if rng.random() < 0.5:
                    assert (rows.append(new) - fresh[:, -1]).abs().max() < 1e-3
                else:
                    assert (rows.append_all(new) - fresh[:, -new.shape[1] :]).abs().max() < 1e-3
            assert rows.length == ids.shape[1]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_branch_off_give_what_a_fresh_pass_gives(model, padded, seed, monkeypatch) -> None:
    monkeypatch.setattr(kv_cache, "FIRST_CAPACITY", 7)  # so that the store grows on the way
    monkeypatch.setattr(branching_rows, "SPARE", 2)  # and closes up
    rng = random.Random(seed)
    torch.manual_seed(seed)
    B, N = 3, rng.randint(1, 5)
    ids = torch.randint(61, (B, 6))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :2] = 0
        mask[2, :4] = 0
    rows = BranchingRows(PackedGPT(model), 40, N)
    kept = torch.arange(B).repeat_interleave(N)
    with torch.inference_mode():
        assert (rows.append(ids, mask) - model(ids, attention_mask=mask)[:, -1]).abs().max() < 1e-3
        for _ in range(30):
            rows.select(kept)
            new = torch.randint(61, (B * N, 1))
            ids, mask = torch.cat([ids[kept], new], 1), torch.cat([mask[kept], torch.ones_like(new)], 1)
            fresh = model(ids, attention_mask=mask)[:, -1]
            assert (rows.append(new) - fresh).abs().max() < 1e-3
            assert (model.lm_head(rows.hidden[:, -1]) - fresh).abs().max() < 1e-3
            assert rows.length == ids.shape[1]
            kept = torch.tensor([prompt * N + rng.randrange(N) for prompt in range(B) for _ in range(N)])


def test_what_rows_of_a_prompt_share_is_read_once(model, monkeypatch) -> None:
    looked_at = []
    states = PackedGPT.branch_states
    monkeypatch.setattr(
        PackedGPT,
        "branch_states",
        lambda self, ids, positions, seen, cache: (
            looked_at.append(seen.shape[-1]) or states(self, ids, positions, seen, cache)
        ),
    )
    generate(PackedGPT(model), [[5, 7, 9]], num_beams=5, max_new_tokens=60, eos_token_id=None, pad_token_id=0)
    generate(PackedGPT(model), [[5, 7, 9]], penalty_alpha=0.6, top_k=5, max_new_tokens=60, eos_token_id=None)
    assert len(looked_at) == 59 + 60
    assert max(looked_at) < 63 * 2  # rows apart would look at 63 * 5


def cache_of(batch_size: int, length: int) -> KVCache:
    """Each token's keys and values are numbers of its own."""
    config = GPTConfig(vocab_size=61, block_size=64, n_layer=2, n_head=2, n_embd=8, drop_rate=0.0)
    cache = KVCache(config, batch_size, 64, torch.device("cpu"), torch.float32)
    fill(cache, length)
    return cache


def fill(cache: KVCache, count: int) -> None:
    for new, _, _ in cache.extend_all(count):
        new.copy_(torch.rand(new.shape))


def contents(cache: KVCache) -> torch.Tensor:
    """(L, 2, B, H, S, D)"""
    return torch.stack([torch.stack([k, v]) for _, k, v in cache.extend_all(0)])


def test_rows_may_change_places_come_twice_and_be_dropped() -> None:
    cache = cache_of(4, 5)
    for rows in ([1, 0, 3, 2], [2, 2, 0, 1], [3], [0, 0, 0, 0, 0, 0], [5, 1], [1, 0]):
        before = contents(cache).clone()
        cache.select(torch.tensor(rows))
        assert torch.equal(contents(cache), before[:, :, rows])
        fill(cache, 2)


def test_only_what_differs_is_copied(monkeypatch) -> None:
    cache = cache_of(1, 40)
    cache.select(torch.tensor([0, 0, 0]))
    fill(cache, 3)
    copied = []
    write = torch.Tensor.__setitem__
    monkeypatch.setattr(
        torch.Tensor, "__setitem__", lambda self, at, tail: copied.append(tail.shape[-2]) or write(self, at, tail)
    )
    cache.select(torch.tensor([0, 2, 1]))
    assert copied == [3, 3]  # tokens of each row that moved: the first forty are the same in all
    cache.select(torch.tensor([0, 1, 2]))
    assert copied == [3, 3]
    cache.select(torch.tensor([1]))
    fill(cache, 1)
    copied.clear()
    cache.select(torch.tensor([0, 0, 0]))  # the rows left behind still hold the same past
    assert max(copied) <= 4


def test_rows_in_another_order_are_not_copied(model, monkeypatch) -> None:
    rows = CachedRows(model, 20, "refuse")
    ids = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    with torch.inference_mode():
        rows.append(ids)
        stored = []
        inner = KVCache.select
        monkeypatch.setattr(KVCache, "select", lambda self, kept: stored.append(kept.tolist()) or inner(self, kept))
        for order in ([2, 0, 1], [1, 1, 0], [2, 2, 0], [1, 2, 0]):
            rows.select(torch.tensor(order))
            ids = torch.cat([ids[order], torch.tensor([[10], [11], [12]])], 1)
            expected = model(ids)[:, -1]
            assert torch.allclose(rows.append(ids[:, -1:]), expected, atol=1e-5)
            assert torch.allclose(model.lm_head(rows.hidden[:, -1]), expected, atol=1e-5)
    assert stored[0] == stored[3] == [0, 1, 2]
    assert all(sum(row != place for place, row in enumerate(kept)) == 1 for kept in stored[1:3])


def test_a_step_allocates_no_new_keys_and_values() -> None:
    cache = cache_of(2, 5)
    place = cache.extend_all(0)[0][1].data_ptr()
    for _ in range(20):
        fill(cache, 1)
        assert cache.extend_all(0)[0][1].data_ptr() == place


def test_a_padded_batch_slides_like_each_prompt_alone(opened) -> None:
    torch.manual_seed(1)
    prompt, short = torch.randint(61, (1, 60)), torch.randint(61, (1, 60))
    steps = torch.randint(61, (12, 2, 1))
    mask = torch.ones(2, 60, dtype=torch.int64)
    mask[1, :5] = 0
    both, alone = (opened(80, "slide") for _ in range(2))
    with torch.inference_mode():
        both.append(torch.cat([prompt, short]), mask)
        alone.append(prompt)
        for step in steps:
            assert (both.append(step)[:1] - alone.append(step[:1])).abs().max() < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "seed": 3, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 2},
        {"penalty_alpha": 0.6, "top_k": 3},
        {"past_block_size": "slide", "max_new_tokens": 90},
    ],
)
def test_texts_are_the_same_with_a_graphs_body(model, monkeypatch, options) -> None:
    prompts = [[5, 7, 9, 11, 2], [8], [1, 2, 3]]
    options = {"max_new_tokens": 50, "eos_token_id": 60, "pad_token_id": 0, **options}
    plain = generate(model, prompts, **options)
    for module in (rows_module, opening):
        monkeypatch.setattr(module, "fastest", lambda model, new_tokens: model)
    bodies = []
    body = graphed_rows._Step._body
    monkeypatch.setattr(graphed_rows._Step, "_body", lambda self: bodies.append(1) or body(self))
    monkeypatch.setattr(opening, "can_graph", lambda model: True)
    assert torch.equal(generate(model, prompts, **options), plain)
    assert len(bodies) > 40


def test_a_graph_that_cannot_be_made_costs_speed_and_says_so(model, monkeypatch) -> None:
    class Refused:
        def __init__(self, *_: object, **__: object) -> None:
            raise RuntimeError("CUDA error: operation not permitted\nmore of it")

    def step(*arguments: object) -> graphed_rows._Step:
        made = plain(*arguments)
        made._call = GraphedCall(torch.device("cuda"))
        return made

    plain = graphed_rows._Step
    monkeypatch.setattr(graphed_rows, "_Step", step)
    monkeypatch.setattr(rows_module, "fastest", lambda model, new_tokens: model)
    monkeypatch.setattr(torch.cuda, "Stream", Refused)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(opening, "can_graph", lambda model: True)
    with pytest.warns(UserWarning, match=r"no CUDA graph could be made.*not permitted$"):
        drawn = generate(model, [[5, 7, 9]], max_new_tokens=50, eos_token_id=None)
    monkeypatch.undo()
    assert torch.equal(drawn, generate(model, [[5, 7, 9]], max_new_tokens=50, eos_token_id=None))


def test_graphs_are_for_a_plain_model_on_a_gpu(model) -> None:
    assert not graphed_rows.can_graph(model)
