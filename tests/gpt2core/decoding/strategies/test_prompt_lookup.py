"""Prompt lookup: the texts of plain decoding, in fewer passes."""

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.decoding.options import GenerationOptions
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.rows.cached import PlainRows
from gpt2core.decoding.strategies.prompt_lookup import _NgramIndex, prompt_lookup
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer


def make_model(vocab_size: int) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size, 100, n_layer=2, n_head=2, n_embd=16)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model(61)


PROMPTS = [[3, 1, 4, 1, 5, 3, 1, 4], [9, 9, 9], [6], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8]]
LOOKUP = {"prompt_lookup_num_tokens": 5}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
        {"bad_words_ids": [[1], [8, 2]], "min_new_tokens": 30},
        {"suppress_tokens": [9, 3]},
    ],
)
def test_greedy_texts_are_those_without_lookup(model, options) -> None:
    said = generate(model, PROMPTS, max_new_tokens=40, eos_token_id=None, **options)
    options = {**options, "max_new_tokens": 40, "pad_token_id": 60, "eos_token_id": said[:2, 40].tolist()}
    plain = generate(model, PROMPTS, **options)
    for lookup in (LOOKUP, {**LOOKUP, "max_matching_ngram_size": 4}, {"prompt_lookup_num_tokens": 1}):
        assert torch.equal(generate(model, PROMPTS, **options, **lookup), plain)


def test_a_stop_string_ends_the_text_at_its_last_token(model) -> None:
    model, tokenizer = make_model(50257), Tokenizer()
    plain = generate(model, [PROMPTS[0]], max_new_tokens=20)
    options = {"tokenizer": tokenizer, "stop_strings": tokenizer.decode(plain[0, 12:14].tolist())}
    stopped = generate(model, [PROMPTS[0]], max_new_tokens=20, **options)
    assert stopped.shape[1] <= 14
    assert torch.equal(generate(model, [PROMPTS[0]], max_new_tokens=20, **options, **LOOKUP), stopped)


class TableRows(PlainRows):
    """A model of token pairs: the next token's probabilities (V, V) are those of the last one."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(lambda ids: table.log()[ids])
        self.passes = 0

    def _take(self, tokens, mask=None):
        self.passes += 1
        super()._take(tokens, mask)


def run(rows: TableRows, prompt: list[int], new: int, generator: torch.Generator | None = None, **options) -> list[int]:
    settings = GenerationOptions(do_sample=generator is not None, eos_token_id=None, **LOOKUP, **options)
    nothing_ends = lambda ids: torch.zeros(len(ids), dtype=torch.bool)  # noqa: E731
    request = DecodingRequest(
        torch.tensor([prompt]), None, settings, [], len(prompt) + new, nothing_ends, generator=generator
    )
    decoded = prompt_lookup(rows, request)
    return decoded.sequences[0, len(prompt) :].tolist()


def test_guesses_follow_the_longest_ngram_first_and_then_the_earliest() -> None:
    lookup = _NgramIndex([1, 2, 7, 1, 2, 9, 5, 2, 8], max_size=2)
    lookup.extend([1, 2])
    assert list(lookup.continuations(2)) == [[7, 1], [9, 5], [7, 1], [9, 5], [8, 1]]


def test_a_text_that_repeats_itself_takes_fewer_passes() -> None:
    circle = torch.full((4, 4), 0.01)
    circle[torch.arange(4), (torch.arange(4) + 1) % 4] = 0.97
    rows = TableRows(circle)
    assert run(rows, [0, 1, 2, 3, 0, 1], 24) == [2, 3, 0, 1] * 6
    # The prompt but for its last token, then six tokens a pass: five guessed and the one after.
    assert rows.passes == 1 + 4 + 1


def test_samples_have_the_distribution_of_the_model() -> None:
    table = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4]])
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(3, 3, 3)
    draws = 3000
    for _ in range(draws):
        first, second, third = run(TableRows(table), [0, 1, 2, 0, 1, 0], 3, generator)
        counts[first, second, third] += 1
    expected = table[0, :, None, None] * table[:, :, None] * table[None] * draws
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 54.1  # 26 degrees of freedom, p = 0.001


def test_no_token_is_read_past_the_limit(model) -> None:
    longest = [PROMPTS[0] * 12]  # 96 tokens of a block_size of 100
    options = {"max_new_tokens": 4, "eos_token_id": None}
    assert torch.equal(generate(model, longest, **options, **LOOKUP), generate(model, longest, **options))


@pytest.mark.parametrize("length", [8, 98, 99, 100, 101, 102, 150])
def test_where_the_window_slides_texts_are_those_without_lookup(model, length) -> None:
    prompt = [(PROMPTS[0] * 19)[:length]]
    options = {"max_new_tokens": 130, "eos_token_id": None, "past_block_size": "slide"}
    assert torch.equal(generate(model, prompt, **options, **LOOKUP), generate(model, prompt, **options))


def test_scores_and_logits_are_those_of_each_token(model) -> None:
    options = {"max_new_tokens": 20, "eos_token_id": None, "repetition_penalty": 1.2, "return_dict_in_generate": True}
    options |= {"output_scores": True, "output_logits": True}
    plain, looked_up = (generate(model, PROMPTS[:1], **options, **more) for more in ({}, LOOKUP))
    for name in ("scores", "logits"):
        torch.testing.assert_close(torch.stack(getattr(looked_up, name)), torch.stack(getattr(plain, name)))
