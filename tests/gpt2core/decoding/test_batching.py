"""Texts asked for by many threads are the texts that each gets alone, and are decoded in few batches."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.decoding import PackedGPT, generate
from gpt2core.decoding import batching as together
from gpt2core.decoding.batching import Job, SharedDecoder
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from tests.support.waiting import wait_until

DRAWN = {"max_new_tokens": 6, "do_sample": True}
PROMPTS = [[5], [1, 2, 3], [7, 8], [9, 10, 11, 12], [13], [14, 15]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PackedGPT(GPT(GPTConfig(50257, 32, n_layer=1, n_head=2, n_embd=16)).eval())


class Gate:
    """The model, which waits for a sign in its first call and notes the rows of each prompt pass."""

    def __init__(self, model):
        self.model, self.open, self.batches = model, threading.Event(), []

    def __call__(self, ids):
        self.open.wait(10)
        return self.model(ids)


def alone(model, prompt, seed, **options):
    row = generate(model, [prompt], seed=seed, **options)[0].tolist()
    new = row[len(prompt) :]
    return Tokenizer().decode(new[: new.index(50256)] if 50256 in new else new)


def ask_while_busy(decoder, gate, jobs):
    """Run each job in a thread of its own, all of them while a first one is being decoded."""
    with ThreadPoolExecutor(len(jobs) + 1) as pool:
        first = pool.submit(decoder.run, [Job([3], {"max_new_tokens": 1})])
        wait_until(lambda: decoder._decoding)
        others = [pool.submit(decoder.run, [job]) for job in jobs]
        wait_until(lambda: len(decoder._waiting) == len(jobs))
        gate.open.set()
        return [future.exception() for future in (first, *others)][1:]


@pytest.fixture
def calls(monkeypatch):
    """Prompts of each call of `generate`."""
    seen = []

    def counted(model, prompts, **options):
        seen.append(len(prompts))
        return generate(model, prompts, **options)

    monkeypatch.setattr(together, "generate", counted)
    return seen


def test_what_waits_with_equal_options_is_one_batch_and_gives_the_texts_of_each_alone(model, calls):
    gate = Gate(model)
    decoder = SharedDecoder(gate, Tokenizer())
    jobs = [Job(prompt, DRAWN, [seed]) for seed, prompt in enumerate(PROMPTS)]
    assert ask_while_busy(decoder, gate, jobs) == [None] * len(jobs)
    assert calls == [1, len(PROMPTS)]
    assert [job.texts for job in jobs] == [[alone(model, p, seed, **DRAWN)] for seed, p in enumerate(PROMPTS)]


def test_other_options_make_another_batch(model, calls):
    gate = Gate(model)
    jobs = [Job([5], DRAWN, [1]), Job([6], {"max_new_tokens": 3}), Job([7], DRAWN, [2])]
    ask_while_busy(SharedDecoder(gate, Tokenizer()), gate, jobs)
    assert sorted(calls) == [1, 1, 2]
    assert jobs[1].texts == [alone(model, [6], None, max_new_tokens=3)]


def test_a_batch_is_no_larger_than_the_memory_that_its_rows_may_take(model, calls, monkeypatch):
    monkeypatch.setattr(together, "MAX_ROWS", 4)
    jobs = [Job(prompt, {"max_new_tokens": 2, "num_beams": 2}) for prompt in PROMPTS]
    SharedDecoder(model, Tokenizer()).run(jobs)
    assert calls == [2, 2, 2]
    assert jobs[1].texts == [alone(model, PROMPTS[1], None, max_new_tokens=2, num_beams=2)]


def test_one_prompts_mistake_is_not_anothers(model):
    gate = Gate(model)
    jobs = [Job([5], {"max_new_tokens": 3}), Job([50_257], {"max_new_tokens": 3}), Job([6], {"max_new_tokens": 3})]
    gate.config = model.config
    errors = ask_while_busy(SharedDecoder(gate, Tokenizer()), gate, jobs)
    assert errors[0] is None
    assert isinstance(errors[1], UserError)
    assert errors[2] is None
    assert jobs[2].texts == [alone(model, [6], None, max_new_tokens=3)]


def test_a_request_that_waits_too_long_gives_up_and_leaves_the_queue(model):
    gate = Gate(model)
    decoder = SharedDecoder(gate, Tokenizer(), seconds=0.2)
    late = Job([5], DRAWN, [1])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(decoder.run, [Job([3], {"max_new_tokens": 1})])
        wait_until(lambda: decoder._decoding)
        with pytest.raises(TimeoutError):
            decoder.run([late])
        assert decoder._waiting == []
        gate.open.set()
    assert not late.done


def test_a_text_is_cut_where_its_time_is_up(model):
    endless = {"max_new_tokens": 10**9, "past_block_size": "slide", "eos_token_id": None}
    job = Job([5], endless)
    started = time.monotonic()
    SharedDecoder(model, Tokenizer(), seconds=0.3).run([job])
    assert time.monotonic() - started < 60
    assert job.texts[0]
