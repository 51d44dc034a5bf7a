"""The template is that of `transformers`: the same ids, for any text, and an answer begins where its mask says."""

import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from gpt2core.data.examples.template import TEMPLATE_FILE, TEMPLATES, Turn, template_of
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer

WORDS = ["a", "Hello", "'s", "12", ".", "?!", "é", "日本", "🎭", "_", '"', "\\"]
BLANKS = [" ", "  ", "\n", "\n\n", "\t", "\u00a0", "\u2003", "\x1c", "\r\n", "\u0085"]
MARKS = ["{{", "%}", "System:", "User: ", "Assistant:", "<|", "endoftext", "|>"]
PIECES = [*WORDS, *BLANKS, *MARKS]


def text_of(draw: random.Random) -> str:
    while True:
        text = "".join(draw.choices(PIECES, k=draw.randint(1, 8)))
        if text.strip() and END_OF_TEXT not in text:
            return text


def conversation(draw: random.Random, name: str) -> list[Turn]:
    turns = [Turn("system", text_of(draw))] if name == "chat" and draw.random() < 0.5 else []
    for _ in range(draw.randint(1, 3)):
        turns += [Turn("user", text_of(draw)), Turn("assistant", text_of(draw))]
    return turns


@pytest.fixture(scope="module", params=TEMPLATES)
def saved(request, tmp_path_factory):
    """A template, and transformers' tokenizer of a directory that has it."""
    directory = tmp_path_factory.mktemp(request.param)
    Tokenizer().save(directory)
    TEMPLATES[request.param].save(directory)
    return TEMPLATES[request.param], AutoTokenizer.from_pretrained(directory)


def ids_of(tokenizer, turns: list[Turn], **options: bool) -> list[int]:
    messages = [turn._asdict() for turn in turns]
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


def test_the_ids_are_those_of_apply_chat_template(saved) -> None:
    template, tokenizer = saved
    draw = random.Random(7)
    for _ in range(400):
        turns = conversation(draw, template.name)
        ids, answers = template.encode(turns)
        assert ids.tolist() == ids_of(tokenizer, turns), turns
        assert len(answers) == len(ids)


def test_a_prompt_is_what_transformers_makes_of_it_and_what_training_has_before_the_answer(saved) -> None:
    template, tokenizer = saved
    draw = random.Random(8)
    for _ in range(200):
        prompt, answer = text_of(draw), text_of(draw)
        found = Tokenizer().encode(template.prompt(prompt))
        assert found == ids_of(tokenizer, [Turn("user", prompt)], add_generation_prompt=True)
        ids, answers = template.encode([Turn("user", prompt), Turn("assistant", answer)])
        first = int(np.flatnonzero(answers)[0])
        assert ids[:first].tolist() == found
        assert answers[first:].all()
        assert ids[-1] == Tokenizer.eot_id
        assert template.answer(Tokenizer().decode(ids[first:-1].tolist())) == answer.strip()


def test_each_answer_of_a_conversation_is_marked_with_the_end_that_closes_it() -> None:
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    ids, answers = TEMPLATES["chat"].encode(turns)
    assert Tokenizer().decode(ids[answers == 1].tolist()) == f" b{END_OF_TEXT} d{END_OF_TEXT}"
    assert Tokenizer().decode(ids.tolist()) == f"User: a\nAssistant: b{END_OF_TEXT}User: c\nAssistant: d{END_OF_TEXT}"


def test_a_directory_says_which_template_its_model_has(saved, tmp_path) -> None:
    template, _ = saved
    assert template_of(tmp_path) is None
    template.save(tmp_path)
    assert template_of(tmp_path) == template
    (tmp_path / TEMPLATE_FILE).write_text("{{ messages }}")
    assert template_of(tmp_path) is None
