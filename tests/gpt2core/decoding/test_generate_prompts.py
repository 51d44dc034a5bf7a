"""generate on lists of prompts: each gets what it would have had alone, in the order given."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.decoding.generation import Model
from gpt2core.decoding.scoring import score_tokens
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer

PROMPTS: list[list[int]] = [[3, 1, 4], [1], [5, 9, 2, 6, 5], [], [2, 7, 1, 8, 2, 8]]
TOKENS = {"eos_token_id": 7, "bos_token_id": 0}
STRATEGIES = {
    "greedy": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "greedy to a length": {"max_length": 14, "min_length": 9},
    "beam": {"num_beams": 3, "no_repeat_ngram_size": 2},
    "beam to a length": {"num_beams": 2, "max_length": 12},
    "group beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 3, "repetition_penalty": 1.2},
    "sliding": {"max_new_tokens": 70, "past_block_size": "slide", "eos_token_id": None, "repetition_penalty": 1.5},
}


@pytest.fixture(scope="module")
def model() -> GPT:
    generator = torch.Generator().manual_seed(0)
    model = GPT(GPTConfig(61, 48, n_layer=2, n_head=2, n_embd=16)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def new_tokens(model: Model, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """The new tokens of each row without the padding behind them."""
    result = generate(model, prompts, return_dict_in_generate=True, **options)
    rows = result.sequences[:, result.prompt_length :].tolist()
    assert result.new_tokens is not None
    return [row[:count] for row, count in zip(rows, result.new_tokens.tolist(), strict=True)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_prompt_of_a_list_gets_what_it_gets_alone(model: GPT, name: str) -> None:
    options = {"max_new_tokens": 12, **TOKENS, **STRATEGIES[name]}
    if "max_length" in options:
        del options["max_new_tokens"]
    together = new_tokens(model, PROMPTS, **options)
    alone = [new_tokens(model, [prompt], **options)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({tuple(row) for row in alone}) > 1


@pytest.mark.parametrize("copies", [1, 2])
def test_a_seed_for_each_sequence_makes_it_independent_of_its_neighbours(model: GPT, copies: int) -> None:
    options = {"do_sample": True, "max_new_tokens": 15, "num_return_sequences": copies, **TOKENS}
    seeds = list(range(100, 100 + copies * len(PROMPTS)))
    together = new_tokens(model, PROMPTS, seed=seeds, **options)
    alone = []
    for number, prompt in enumerate(PROMPTS):
        own = seeds[number * copies : (number + 1) * copies]
        alone += new_tokens(model, [prompt], seed=own, **options)
    assert together == alone


def test_a_callable_without_mask_or_cache_takes_a_list_of_prompts_too(model: GPT) -> None:
    options = {"do_sample": True, "seed": 3, "max_new_tokens": 9, "num_return_sequences": 2, **TOKENS}
    assert torch.equal(generate(lambda ids: model(ids), PROMPTS, **options), generate(model, PROMPTS, **options))


def test_an_empty_prompt_starts_from_the_end_of_text(model: GPT) -> None:
    empty = generate(model, torch.zeros(1, 0, dtype=torch.int64), max_new_tokens=5, **TOKENS)
    assert torch.equal(empty, generate(model, torch.tensor([[0]]), max_new_tokens=5, **TOKENS))


def test_a_users_processor_sees_a_prompt_without_its_padding(model: GPT) -> None:
    def first_token_again(ids: Tensor, logits: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).scatter(1, ids[:, :1], 0.0)

    options = {"logits_processor": [first_token_again], "max_new_tokens": 3, **TOKENS}
    assert new_tokens(model, [[3, 1, 4], [9]], **options) == [[3, 3, 3], [9, 9, 9]]


def test_a_window_that_slides_sees_the_latest_half_block_or_more(model: GPT) -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    out = generate(model, ids, max_new_tokens=100, eos_token_id=None, past_block_size="slide")[0]
    expected, kept = ids[0].tolist(), 5
    with torch.no_grad():
        for _ in range(100):
            if kept > 48:  # what does not fit is forgotten but for the latest half of the block
                kept = 24
            window = torch.tensor([expected[-kept:]])
            expected.append(int(model(window)[0, -1].argmax()))
            kept += 1
    assert out.tolist() == expected


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3, "num_return_sequences": 2}, {"penalty_alpha": 0.5, "top_k": 3}, {"max_new_tokens": 60}],
)
def test_log_probabilities_are_the_models_own(model: GPT, options) -> None:
    if options.get("max_new_tokens") == 60:
        options = {**options, "past_block_size": "slide"}
    settings = {"max_new_tokens": 10, **TOKENS, **options}
    result = generate(model, PROMPTS[:3], return_dict_in_generate=True, output_log_probs=True, **settings)
    assert result.log_probs is not None
    assert result.new_tokens is not None
    copies = settings.get("num_return_sequences", 1)
    for number, row in enumerate(result.sequences):
        prompt = PROMPTS[number // copies]
        count = int(result.new_tokens[number])
        text = torch.tensor([prompt + row[5 : 5 + count].tolist()])
        if text.shape[1] <= 48:
            expected = score_tokens(lambda ids: model(ids), text, None, len(prompt), torch.tensor([count]))
            torch.testing.assert_close(result.log_probs[number, :count], expected[0], atol=1e-5, rtol=1e-5)
        assert bool((result.log_probs[number, count:] == 0).all())


def test_why_each_row_ended_is_told() -> None:
    tokenizer = Tokenizer()
    torch.manual_seed(0)
    model = GPT(GPTConfig(50257, 64, n_layer=1, n_head=1, n_embd=8)).eval()
    script = [tokenizer.encode(text) for text in (" one two three four", " one<|endoftext|>", " one STOP and on")]
    prompts = [[5], [6], [7]]

    def dictate(ids: Tensor, logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, -torch.inf)
        for row, own in enumerate(ids.tolist()):
            text = script[own[0] - 5]
            place = len(own) - 1
            forced[row, text[place] if place < len(text) else 0] = 0.0
        return forced

    result = generate(
        model,
        prompts,
        logits_processor=[dictate],
        stop_strings="STOP",
        tokenizer=tokenizer,
        max_new_tokens=4,
        return_dict_in_generate=True,
    )
    assert result.finish_reasons == ("length", "eos", "stop")
    assert result.new_tokens is not None
    assert result.new_tokens.tolist() == [4, 2, len(tokenizer.encode(" one STOP"))]


def test_time_that_is_up_ends_all_rows(model: GPT) -> None:
    result = generate(model, PROMPTS, max_time=1e-9, return_dict_in_generate=True, max_new_tokens=40, **TOKENS)
    assert result.sequences.shape[1] == 6 + 1
    assert set(result.finish_reasons) <= {"time", "eos"}


class Recorder:
    """A streamer as transformers' are."""

    def __init__(self) -> None:
        self.put_tokens: list[Tensor] = []
        self.ended = False

    def put(self, tokens: Tensor) -> None:
        self.put_tokens.append(tokens)

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("name", ["greedy", "contrastive", "prompt lookup"])
def test_a_streamer_gets_the_prompt_and_then_every_token_of_the_result(model: GPT, name: str) -> None:
    recorder = Recorder()
    result = generate(model, PROMPTS[:1], streamer=recorder, max_new_tokens=9, **TOKENS, **STRATEGIES[name])
    assert recorder.put_tokens[0].tolist() == PROMPTS[:1]
    assert torch.cat([tokens.flatten() for tokens in recorder.put_tokens]).tolist() == result[0].tolist()
    assert recorder.ended


def test_what_cannot_be_streamed_is_refused_before_anything_is_written(model: GPT) -> None:
    for prompts, options, message in (
        (PROMPTS[:1], {"num_beams": 2}, "only at the end"),
        (PROMPTS, {"prompt_lookup_num_tokens": 2}, "these prompts need several"),
    ):
        recorder = Recorder()
        with pytest.raises(UserError, match=message):
            generate(model, prompts, streamer=recorder, **TOKENS, **options)
        assert recorder.put_tokens == []


def test_the_results_are_plain_tensors(model: GPT) -> None:
    result = generate(model, PROMPTS, return_dict_in_generate=True, output_scores=True, max_new_tokens=3, **TOKENS)
    assert result.scores is not None
    assert not result.sequences.is_inference()
    assert not result.scores[0].is_inference()


def test_no_prompt_at_all_is_one_clear_line(model: GPT) -> None:
    with pytest.raises(UserError, match="holds no prompt"):
        generate(model, [])
    with pytest.raises(UserError, match="whole numbers"):
        generate(model, [["a"]])  # type: ignore[list-item]
    with pytest.raises(UserError, match="one list a prompt"):
        generate(model, [[[1, 2]]])  # type: ignore[list-item]
