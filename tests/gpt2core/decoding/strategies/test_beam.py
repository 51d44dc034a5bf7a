"""Beam search, beam sampling and group beam search keep what each promises."""

import itertools

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.decoding.options import GenerationOptions
from gpt2core.decoding.request import DecodingRequest
from gpt2core.decoding.rows.cached import CachedRows
from gpt2core.decoding.rows.opening import open_rows
from gpt2core.decoding.strategies.beam import beam_search
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer


def request(ids: torch.Tensor, options: GenerationOptions, max_length: int) -> DecodingRequest:
    """Prompts without padding and processors, which nothing but the length ends."""
    nothing_ends = lambda ids: torch.zeros(len(ids), dtype=torch.bool)  # noqa: E731
    return DecodingRequest(ids, None, options, [], max_length, nothing_ends)


def make_model(vocab_size: int, block_size: int = 48) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size, block_size, n_layer=2, n_head=2, n_embd=16)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return make_model(61)


def log_probability(model: GPT, text: list[int], prompt_length: int) -> float:
    """Of the tokens after the prompt, by one plain pass."""
    ids = torch.tensor([text])
    with torch.inference_mode():
        log_probs = model(ids)[0, prompt_length - 1 : -1].log_softmax(-1)
    return log_probs.gather(1, ids[0, prompt_length:, None]).sum().item()


def test_with_a_beam_for_every_text_the_likeliest_of_all_texts_is_found() -> None:
    model = make_model(5)
    prompt = [3, 1]
    every = [[*prompt, *new] for new in itertools.product(range(5), repeat=3)]
    ranked = sorted(every, key=lambda text: -log_probability(model, text, 2))
    found = generate(
        model, torch.tensor([prompt]), num_beams=25, num_return_sequences=10, max_new_tokens=3, eos_token_id=None
    )
    assert found.tolist() == ranked[:10]


def test_a_score_is_the_log_probability_over_the_length_to_the_power_of_the_penalty(model) -> None:
    prompt, lengths = torch.tensor([[3, 1, 4]]), set()
    said = generate(model, prompt, num_beams=4, max_new_tokens=12, eos_token_id=None)[0, 3:].tolist()
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12, "eos_token_id": said[3:6]}
    options |= {"pad_token_id": 60, "return_dict_in_generate": True, "output_scores": True}
    for length_penalty in (-1.0, 0.0, 1.0, 2.0):
        output = generate(model, prompt, length_penalty=length_penalty, **options)
        for text, score in zip(output.sequences.tolist(), output.sequences_scores.tolist(), strict=True):
            text = [token for token in text if token != 60]
            lengths.add(len(text))
            expected = log_probability(model, text, 3) / (len(text) - 3) ** length_penalty
            assert score == pytest.approx(expected, rel=1e-5)
    assert len(lengths) > 2


def test_beam_indices_lead_back_along_the_text(model) -> None:
    output = generate(
        model,
        torch.tensor([[3, 1, 4], [1, 5, 9]]),
        num_beams=3,
        max_new_tokens=8,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for prompt, rows in enumerate(output.beam_indices.tolist()):
        total = 0.0
        for step, row in enumerate(rows):
            assert row // 3 == prompt
            total += output.scores[step][row, output.sequences[prompt, 3 + step]].item()
        assert output.sequences_scores[prompt].item() == pytest.approx(total / 8, abs=1e-4)


STRATEGIES = [
    {"num_beams": 4, "num_return_sequences": 2},
    {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5, "min_new_tokens": 4},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7, "num_return_sequences": 4},
]


@pytest.mark.parametrize("options", STRATEGIES)
def test_prompts_of_different_lengths_each_get_what_they_would_alone(model, options) -> None:
    prompts = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5], [8, 9, 7]]
    options = {"max_new_tokens": 14, "pad_token_id": 60, **options}
    said = generate(model, prompts, **options, eos_token_id=None)[:, 10].tolist()
    options["eos_token_id"] = said
    together = generate(model, prompts, **options)
    assert bool(torch.isin(together[:, 7:], torch.tensor(said)).any())
    copies = options.get("num_return_sequences", 1)
    for number, prompt in enumerate(prompts):
        alone = generate(model, torch.tensor([prompt]), **options)[:, len(prompt) :]
        rows = together[number * copies : (number + 1) * copies, 7:]
        assert torch.equal(rows[:, : alone.shape[1]], alone)
        assert bool((rows[:, alone.shape[1] :] == 60).all())


def test_with_early_stopping_a_prompt_that_is_done_changes_no_more_while_others_go_on(model) -> None:
    prompts = [[3, 1, 4], [6], [5, 3, 5], [8, 9, 7], [9, 3], [2, 3, 8], [4], [6, 2, 6]]
    options = {"num_beams": 3, "early_stopping": True, "max_new_tokens": 20, "pad_token_id": 60}
    # Long texts score better, so that a search that went on would find them; without repeats all texts come to ends.
    options |= {"length_penalty": 3.0, "no_repeat_ngram_size": 1, "eos_token_id": [7, 48, 12]}
    together = generate(model, prompts, **options)[:, 3:]
    lengths = set()
    for row, prompt in zip(together, prompts, strict=True):
        alone = generate(model, torch.tensor([prompt]), **options)[0, len(prompt) :]
        assert torch.equal(row[: len(alone)], alone)
        lengths.add(len(alone))
    assert len(lengths) > 2


def test_with_a_seed_a_prompt_the_beams_drawn_are_those_of_the_prompt_alone(model) -> None:
    prompts, seeds = [[3, 1, 4, 1, 5], [6], [5, 3, 5]], [11, 12, 13]
    options = {"do_sample": True, "num_beams": 3, "max_new_tokens": 10, "eos_token_id": None}
    together = generate(model, prompts, seed=seeds, **options)
    for row, prompt, seed in zip(together, prompts, seeds, strict=True):
        assert torch.equal(row[5:], generate(model, torch.tensor([prompt]), seed=seed, **options)[0, len(prompt) :])
    assert not torch.equal(together, generate(model, prompts, seed=[12, 13, 14], **options))


def test_a_callable_without_a_cache_gives_the_same_texts(model) -> None:
    prompts = torch.tensor([[3, 1, 4], [1, 5, 9]])
    for options in STRATEGIES:
        options = {"max_new_tokens": 10, "eos_token_id": 7, **options}
        assert torch.equal(generate(lambda ids: model(ids), prompts, **options), generate(model, prompts, **options))


def test_the_cache_is_reordered_only_when_beams_moved(model) -> None:
    class Watched(CachedRows):
        moves = 0

        def select(self, rows: torch.Tensor) -> None:
            Watched.moves += 1
            assert len(rows) != len(self.hidden) or not torch.equal(rows, torch.arange(len(rows)))
            super().select(rows)

    options = GenerationOptions(num_beams=2, max_new_tokens=30, eos_token_id=None)
    rows = Watched(model, 40, "refuse")
    with torch.inference_mode():
        beam_search(rows, request(torch.tensor([[3, 1, 4]]), options, max_length=33))
    assert 1 < Watched.moves < 30


def test_a_prompt_is_read_once_whatever_the_number_of_beams(model) -> None:
    class Watched:
        """Rows that note how much is appended."""

        def __init__(self) -> None:
            self.rows = open_rows(model, 40)
            self.appended = []

        def append(self, tokens, mask=None):
            self.appended.append(tuple(tokens.shape))
            return self.rows.append(tokens, mask)

        def __getattr__(self, name):
            return getattr(self.rows, name)

    options = GenerationOptions(num_beams=5, max_new_tokens=3, eos_token_id=None)
    rows = Watched()
    with torch.inference_mode():
        ids = torch.tensor([[3, 1, 4, 1]])
        beam_search(rows, request(ids, options, max_length=7))
    assert rows.appended == [(1, 4), (5, 1), (5, 1)]


@pytest.mark.parametrize("options", [STRATEGIES[0], STRATEGIES[3]])
def test_a_stop_string_ends_a_text_as_an_end_of_text_does(options) -> None:
    model, tokenizer = make_model(50257), Tokenizer()
    plain = generate(model, [[11, 12, 13]], max_new_tokens=8, **options)
    stop = tokenizer.decode(plain[0, 5:6].tolist())
    stopped = generate(model, [[11, 12, 13]], max_new_tokens=8, tokenizer=tokenizer, stop_strings=stop, **options)
    texts = [tokenizer.decode(row[3:].tolist()).removesuffix("<|endoftext|>" * 8) for row in stopped]
    ended = [text for text in texts if stop in text]
    assert ended
    for text in ended:
        assert text.replace("<|endoftext|>", "").endswith(stop)


def test_groups_begin_differently_where_the_diversity_penalty_is_large(model) -> None:
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 6, "eos_token_id": None}
    prompt = torch.tensor([[3, 1, 4]])
    diverse = generate(model, prompt, num_beam_groups=4, diversity_penalty=100.0, **options)
    assert all(len(set(column)) == 4 for column in diverse[:, 3:].T.tolist())
    plain = generate(model, prompt, **options)
    assert len(set(plain[:, 3].tolist())) < 4
