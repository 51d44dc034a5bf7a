"""What a run says of its examples: how many are trained, and which are too long."""

from pathlib import Path

import pytest

from gpt2core.data.batches import Batches
from gpt2core.data.examples.batches import ExampleBatches
from gpt2core.data.examples.reading import Example
from gpt2core.data.examples.template import TEMPLATES, Turn
from gpt2core.data.examples.writer import write_examples
from gpt2core.data.tokens import open_split, open_tokens
from gpt2core.data.writer import write_tokens
from gpt2ops.params.schema import Params, parse_params
from gpt2ops.training.examples import example_lines, open_batches, template_for

SHARES = {"train": 1.0, "val": 0.0, "test": 0.0}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Six short examples, one with a long answer, one with a long prompt."""
    asked = [*(("short", "yes"),) * 6, ("short", "long " * 30), ("long " * 30, "lost")]
    examples = [
        Example((Turn("user", prompt), Turn("assistant", answer)), "faq.jsonl", f"line {number}")
        for number, (prompt, answer) in enumerate(asked, start=1)
    ]
    write_examples(tmp_path / "tokens", examples, TEMPLATES["completion"], source="test", shares=SHARES)
    return tmp_path / "tokens"


def params(**train: object) -> Params:
    return parse_params({"data": {"format": "completion"}, "train": {"batch_size": 2, "sequence_length": 16, **train}})


def lines(tokens: Path, settings: Params) -> list[str]:
    return example_lines(settings, open_batches(settings, open_split(tokens, "train")), open_tokens(tokens).manifest)


def test_examples_that_are_too_long_are_counted_and_named(tokens: Path) -> None:
    trained, long = lines(tokens, params())
    assert "6 in the train split (completion)" in trained
    assert "answers alone" in trained
    for part in ("2 examples", "(16 tokens", "2 left out", "faq.jsonl, line 7", "faq.jsonl, line 8"):
        assert part in long
    trained, long = lines(tokens, params(long_examples="truncate", mask_prompt=False))
    assert "7 in the train split" in trained
    assert "prompts and answers" in trained
    assert "1 cut, 1 left out, as a cut would leave nothing of the answer" in long
    (trained,) = lines(tokens, params(sequence_length=64, packing=True))
    assert "8 in the train split (completion), packed in" in trained


def test_settings_and_tokens_decide_the_kind_of_batches(tokens: Path, tmp_path: Path) -> None:
    assert isinstance(open_batches(params(), open_split(tokens, "train")), ExampleBatches)
    assert template_for(open_tokens(tokens).manifest) == TEMPLATES["completion"]
    write_tokens(tmp_path / "text", ["word " * 50], source="test", shares=SHARES)
    settings = parse_params({"train": {"batch_size": 2, "sequence_length": 16}})
    batches = open_batches(settings, open_split(tmp_path / "text", "train"))
    assert isinstance(batches, Batches)
    assert template_for(open_tokens(tmp_path / "text").manifest) is None
    assert example_lines(settings, batches, {}) == []
