"""Text as it is written: whole characters, the text of `generate`, and a generation that ends with its reader."""

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.decoding.streaming import TextStream, stream
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer

TOKENIZER = Tokenizer()
EOT = TOKENIZER.eot_id


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(50257, 64, n_layer=1, n_head=2, n_embd=16)).eval()


def pieces_of(token_ids: list[int]) -> list[str]:
    text = TextStream(TOKENIZER)
    return [*(text.put([token_id]) for token_id in token_ids), text.end()]


@given(st.text(max_size=40))
def test_pieces_are_whole_characters_and_make_the_text(text: str) -> None:
    pieces = pieces_of(TOKENIZER.encode(text))
    assert "".join(pieces) == text
    assert pieces[-1] == ""  # nothing waits: the last character was whole


@given(st.lists(st.integers(0, TOKENIZER.n_vocab - 1), max_size=30), st.integers(1, 5))
def test_any_tokens_make_the_text_of_decode(token_ids: list[int], together: int) -> None:
    text = TextStream(TOKENIZER)
    pieces = [text.put(token_ids[start : start + together]) for start in range(0, len(token_ids), together)]
    assert "".join([*pieces, text.end()]) == TOKENIZER.decode(token_ids)


def test_a_character_of_several_tokens_waits_for_its_last() -> None:
    token_ids = TOKENIZER.encode("🙂é")
    assert len(token_ids) > 2
    assert [piece for piece in pieces_of(token_ids) if piece] == ["🙂", "é"]
    assert pieces_of(token_ids[:1]) == ["", "\ufffd"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "top_k": 20, "temperature": 1.5},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"prompt_lookup_num_tokens": 4},
    ],
)
def test_the_pieces_are_the_text_of_generate(model: GPT, options: dict) -> None:
    prompt = TOKENIZER.encode("To be")
    options = {**options, "max_new_tokens": 30}
    (row,) = generate(model, [prompt], seed=5, **options).tolist()
    assert "".join(stream(model, prompt, TOKENIZER, seed=5, **options)) == TOKENIZER.decode(row[len(prompt) :])
    assert "".join(stream(model, torch.tensor([prompt]), TOKENIZER, seed=5, **options)) == (
        TOKENIZER.decode(row[len(prompt) :])
    )


def speaks(token_ids: list[int]):
    """A model that says these tokens, one after the other, and then the last for ever."""
    said = iter(token_ids)
    steps: list[int] = []

    def logits(ids: torch.Tensor) -> torch.Tensor:
        steps.append(ids.shape[1])
        scores = torch.zeros(*ids.shape, 50257)
        scores[:, -1, next(said, token_ids[-1])] = 9.0
        return scores

    return logits, steps


def test_the_end_of_text_is_no_piece() -> None:
    model, _ = speaks([*TOKENIZER.encode("Good night"), EOT])
    assert "".join(stream(model, [1], TOKENIZER, max_new_tokens=9)) == "Good night"


def test_a_stop_string_ends_the_pieces() -> None:
    model, steps = speaks(TOKENIZER.encode("one two three four"))
    assert "".join(stream(model, [1], TOKENIZER, max_new_tokens=9, stop_strings="two")) == "one two"
    assert len(steps) == 2


def test_a_piece_comes_before_the_next_token_is_computed() -> None:
    model, steps = speaks(TOKENIZER.encode("a") * 50)
    pieces = stream(model, [1], TOKENIZER, max_new_tokens=50)
    next(pieces)
    time.sleep(0.1)
    assert len(steps) <= 4  # one piece waits, one is being handed over, one is being made: no more
    pieces.close()


def test_a_reader_that_leaves_stops_the_generation() -> None:
    before = threading.active_count()
    model, steps = speaks(TOKENIZER.encode("a") * 1000)
    pieces = stream(model, [1], TOKENIZER, max_new_tokens=1000)
    assert next(pieces) == "a"
    pieces.close()
    assert threading.active_count() == before
    assert len(steps) < 10


def test_what_goes_wrong_reaches_the_reader_after_the_pieces_before_it() -> None:
    said = 0

    def model(ids: torch.Tensor) -> torch.Tensor:
        nonlocal said
        said += 1
        if said == 3:
            raise RuntimeError("the lights went out")
        return torch.zeros(*ids.shape, 50257)

    pieces = stream(model, [1], TOKENIZER, max_new_tokens=9)
    assert [next(pieces), next(pieces)] == ["!", "!"]
    with pytest.raises(RuntimeError, match="the lights went out"):
        next(pieces)


def test_a_wrong_option_is_told_at_once(model: GPT) -> None:
    with pytest.raises(UserError, match="top_p"):
        stream(model, [1], TOKENIZER, do_sample=True, top_p=1.5)
    with pytest.raises(UserError, match="unknown option temprature"):
        stream(model, [1], TOKENIZER, temprature=1.5)
    with pytest.raises(UserError, match="one text as it grows"):
        stream(model, [1], TOKENIZER, num_beams=2)
    with pytest.raises(UserError, match="one prompt, not of 2"):
        stream(model, torch.ones(2, 3, dtype=torch.int64), TOKENIZER)
    with pytest.raises(UserError, match="block_size"):
        next(stream(model, [1], TOKENIZER, max_new_tokens=500))
