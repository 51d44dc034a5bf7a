"""generate gives transformers' tokens, with a cache and without."""

import math

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.errors import UserError
from gpt2core.model import GPT


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[GPT, GPT2LMHeadModel]:
    directory = tmp_path_factory.mktemp("reference")
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=61,
            n_positions=48,
            n_layer=2,
            n_head=2,
            n_embd=16,
            bos_token_id=0,
            eos_token_id=7,
            pad_token_id=7,
        )
    ).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    reference.save_pretrained(directory)
    return GPT.from_pretrained(directory), reference


PROMPT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def test_greedy_tokens_equal_transformers(pair) -> None:
    model, reference = pair
    ours = generate(model, PROMPT, max_new_tokens=30, eos_token_id=7)
    theirs = reference.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=30, do_sample=False)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 10, "top_p": 1.0},
        {"temperature": 1.3, "top_k": 0, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 20, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_seeded_samples_equal_transformers(pair, options, seed) -> None:
    model, reference = pair
    torch.manual_seed(seed)
    theirs = reference.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        max_new_tokens=25,
        do_sample=True,
        num_return_sequences=3,
        **options,
    )
    ours = generate(
        model,
        PROMPT,
        seed=seed,
        max_new_tokens=25,
        do_sample=True,
        num_return_sequences=3,
        eos_token_id=7,
        **options,
    )
    assert torch.equal(ours, theirs)


def test_left_padded_prompts_give_what_each_gives_alone(pair) -> None:
    model, _ = pair
    padded = torch.tensor([[7, 7, 3, 1], [9, 2, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    together = generate(model, padded, mask, max_new_tokens=12, eos_token_id=None)
    assert torch.equal(together[0, 2:], generate(model, padded[:1, 2:], max_new_tokens=12, eos_token_id=None)[0])
    assert torch.equal(together[1], generate(model, padded[1:], max_new_tokens=12, eos_token_id=None)[0])


def test_padding_shows_itself_as_in_transformers_where_no_mask_is_given(pair) -> None:
    model, reference = pair
    padded = torch.tensor([[60, 60, 3, 1], [9, 2, 6, 5]])
    options = {"max_new_tokens": 12, "eos_token_id": 7, "pad_token_id": 60, "repetition_penalty": 1.8}
    ours = generate(model, padded, **options)
    assert torch.equal(ours, reference.generate(padded, do_sample=False, **options))
    assert not torch.equal(ours, generate(model, padded, torch.ones_like(padded), **options))


def test_a_padding_token_within_a_prompt_is_text(pair) -> None:
    prompt = torch.tensor([[3, 60, 1, 4], [60, 2, 60, 5]])
    expected = generate(pair[0], prompt, torch.ones_like(prompt), max_new_tokens=5, eos_token_id=7, pad_token_id=60)
    assert torch.equal(generate(pair[0], prompt, max_new_tokens=5, eos_token_id=7, pad_token_id=60), expected)


def test_a_callable_without_a_cache_gives_the_same_tokens(pair) -> None:
    model, _ = pair
    calls = []

    def logits(token_ids: torch.Tensor) -> torch.Tensor:
        calls.append(token_ids.shape)
        return model(token_ids)

    options = {"max_new_tokens": 10, "do_sample": True, "eos_token_id": None, "seed": 5}
    assert torch.equal(generate(logits, PROMPT, **options), generate(model, PROMPT, **options))
    assert len(calls) == 10


def test_the_same_seed_gives_the_same_text_and_leaves_the_global_generator_alone(pair) -> None:
    model, _ = pair
    state = torch.get_rng_state()
    first = generate(model, PROMPT, seed=3, do_sample=True)
    assert torch.equal(first, generate(model, PROMPT, seed=3, do_sample=True))
    assert not torch.equal(first, generate(model, PROMPT, seed=4, do_sample=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 45}, "at most 44 new tokens fit"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "temperature": math.nan}, "temperature"),
        ({"do_sample": True, "temperature": 1e-300}, "temperature"),
        ({"do_sample": True, "seed": 2**64}, "seed"),
        ({"seed": -1}, "seed"),
        ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"max_new_token": 3}, "unknown option max_new_token; did you mean max_new_tokens"),
        ({"suppress_tokens": [61]}, "suppress_tokens: token id 61 is outside the model's vocabulary"),
        ({"max_length": 5}, "leaves no room after a prompt of 5 tokens"),
        ({"do_sample": True, "seed": [1, 2, 3]}, "seed has 3 values for 2 sequences"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 0]] * 2)}, "0 at the left only"),
        ({"attention_mask": torch.ones(2, 3)}, "differ in shape"),
        ({"num_return_sequences": 2}, "greedy"),
    ],
)
def test_options_out_of_range_are_one_clear_line(pair, options, message) -> None:
    with pytest.raises(UserError, match=message) as error:
        generate(pair[0], PROMPT, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("do_sample", [False, True])
def test_no_token_left_to_choose_is_one_clear_line(pair, do_sample) -> None:
    with pytest.raises(UserError, match="every token is forbidden"):
        generate(pair[0], PROMPT, do_sample=do_sample, suppress_tokens=range(61))


def test_an_end_of_text_may_be_a_numpy_number(pair) -> None:
    expected = generate(pair[0], PROMPT, max_new_tokens=30, eos_token_id=7)
    assert torch.equal(generate(pair[0], PROMPT, max_new_tokens=30, eos_token_id=np.int64(7)), expected)


@pytest.mark.parametrize("token_id", [61, -1])
def test_a_token_outside_the_vocabulary_is_one_clear_line(pair, token_id) -> None:
    with pytest.raises(UserError, match=f"token_ids: {token_id} is outside the model's vocabulary .0 to 60"):
        generate(pair[0], torch.tensor([[3, token_id]]))


def test_weights_that_are_not_finite_are_one_clear_line() -> None:
    model = GPT(GPTConfig(61, 32, n_layer=1, n_head=2, n_embd=16)).eval()
    with torch.no_grad():
        model.wpe.weight.fill_(math.nan)
    with pytest.raises(UserError, match="logits are not finite"):
        generate(model, torch.ones(1, 3, dtype=torch.int64), do_sample=True, max_new_tokens=2)


def test_generation_may_fill_the_whole_block(pair) -> None:
    model, _ = pair
    assert generate(model, PROMPT, max_new_tokens=44, eos_token_id=None).shape == (2, 49)


def test_cached_logits_equal_a_full_pass() -> None:
    from gpt2core.decoding.rows.kv_cache import KVCache

    torch.manual_seed(0)
    model = GPT(GPTConfig(61, 32, n_layer=2, n_head=2, n_embd=16)).eval()
    ids = torch.randint(61, (2, 20))
    cache = KVCache(model.config, 2, 20, ids.device, torch.float32)
    with torch.no_grad():
        parts = [model(ids[:, start:stop], cache=cache) for start, stop in ((0, 5), (5, 6), (6, 13), (13, 20))]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids), atol=1e-5, rtol=1e-5)
