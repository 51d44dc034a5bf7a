"""`gpt2 data show`: what the model will see of a file, and what it learns of it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2core.data.examples.template import TEMPLATES, Turn
from gpt2core.tokenizer import Tokenizer
from tests.support.command import run_here

PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(8)]
CHAT = {"messages": [{"role": "user", "content": "Hi 🎭"}, {"role": "assistant", "content": "Yes"}]}


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    return lambda *arguments: run_here(capsys, monkeypatch, "data", "show", *map(str, arguments))


def lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(("kind", "records"), [("completion", PAIRS), ("chat", [CHAT] * 8)])
def test_the_tokens_are_those_of_the_template_and_the_format_is_found(gpt2, kind: str, records, tmp_path) -> None:
    result = gpt2(lines(tmp_path / "a.jsonl", records), "--json", "--count", 3)
    shown = [json.loads(line) for line in result.out.splitlines()]
    assert [one["record"] for one in shown] == [f"a.jsonl, line {i}" for i in (1, 2, 3)]
    for one, record in zip(shown, records, strict=False):
        turns = [Turn("user", record.get("prompt", "Hi 🎭")), Turn("assistant", record.get("completion", "Yes"))]
        ids, answers = TEMPLATES[kind].encode(turns)
        assert one["format"] == kind
        assert [token["id"] for token in one["tokens"]] == ids.tolist()
        assert [token["trained"] for token in one["tokens"]] == [bool(answer) for answer in answers]


def test_a_page_has_a_line_a_token_and_marks_what_is_trained(gpt2, tmp_path: Path) -> None:
    result = gpt2(lines(tmp_path / "a.jsonl", PAIRS))
    pages = result.out.strip().split("\n\n")
    assert len(pages) == 5  # unless another count is given
    ids, answers = TEMPLATES["completion"].encode([Turn("user", "What is 0?"), Turn("assistant", "It is 0.")])
    heading, *rows = pages[0].splitlines()
    assert heading == f"a.jsonl, line 1: {len(ids)} tokens, {answers.sum()} trained"
    assert ["train" in row for row in rows] == [bool(answer) for answer in answers]
    assert rows[-1].split()[1:] == [str(Tokenizer.eot_id), "'<|endoftext|>'"]


def test_a_parquet_file_is_known_by_its_columns(gpt2, tmp_path: Path) -> None:
    for name, records, kind in (("a", PAIRS, "completion"), ("b", [CHAT], "chat"), ("c", [{"text": "x"}], "text")):
        pq.write_table(pa.Table.from_pylist(records), tmp_path / f"{name}.parquet")
        shown = [json.loads(line) for line in gpt2(tmp_path / f"{name}.parquet", "--json").out.splitlines()]
        assert {one["format"] for one in shown} == {kind}


def test_other_fields_and_plain_text(gpt2, tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_text('question,answer\n"Why?","Because."\n')
    given = ("--prompt-field", "question", "--completion-field", "answer")
    (shown,) = map(json.loads, gpt2(path, "--json", *given).out.splitlines())
    assert shown["format"] == "completion"
    text = tmp_path / "a.txt"
    text.write_text("one<|endoftext|>two")
    first, second = map(json.loads, gpt2(text, "--json").out.splitlines())
    assert "".join(token["text"] for token in second["tokens"]) == "two<|endoftext|>"
    assert all(token["trained"] for token in first["tokens"])
    assert first["record"] == "a.txt, document 1"


@pytest.mark.parametrize(
    ("records", "flags", "said"),
    [
        ([{"prompt": "a"}], ["--format", "completion"], ["line 1", "--completion-field"]),
        ([CHAT, {"messages": [{"role": "bot", "content": "x"}]}], [], ["line 2", "'bot'"]),
        ([{"other": 1}], [], ["--text-field"]),
        (PAIRS, ["--count", "0"], ["--count (0)"]),
    ],
)
def test_a_mistake_is_one_line_in_words_of_flags(gpt2, records, flags: list[str], said: list[str], tmp_path) -> None:
    result = gpt2(lines(tmp_path / "a.jsonl", records), *flags)
    assert result.code == 1
    assert len(result.err.strip().splitlines()) == 1
    assert all(part in result.err for part in said), result.err
