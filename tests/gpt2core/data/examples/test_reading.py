"""Records of every kind of file give the same examples; a wrong one is named with its file and place."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2core.data.examples.reading import Example, Fields, check_examples, read_examples
from gpt2core.data.examples.template import Turn
from gpt2core.errors import UserError

PAIRS = [{"prompt": "What, then?", "completion": 'He said "no"\nand left'}, {"prompt": "日本", "completion": "🎭"}]
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes"},
        ]
    },
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]


def write(path: Path, records: list[dict]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".jsonl":
        path.write_text(lines)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()} for record in records]
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(cells[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(cells)
    return path


def turns(examples: list[Example]) -> list[tuple[Turn, ...]]:
    return [example.turns for example in examples]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz"])
def test_every_kind_of_file_gives_the_same_examples(suffix: str, tmp_path: Path) -> None:
    pairs, chats = write(tmp_path / f"pairs{suffix}", PAIRS), write(tmp_path / f"chats{suffix}", CHATS)
    assert turns(list(read_examples([pairs], "completion", Fields()))) == [
        (Turn("user", pair["prompt"]), Turn("assistant", pair["completion"])) for pair in PAIRS
    ]
    assert turns(list(read_examples([chats], "chat", Fields()))) == [
        tuple(Turn(**message) for message in chat["messages"]) for chat in CHATS
    ]


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"q": "1", "a": "2", "other": None}])
    (example,) = read_examples([path], "completion", Fields(prompt="q", completion="a"))
    assert example == Example((Turn("user", "1"), Turn("assistant", "2")), "a.jsonl", "line 1")
    path = write(tmp_path / "b.jsonl", [{"m": [{"from": "user", "value": "1"}, {"from": "assistant", "value": "2"}]}])
    assert turns(list(read_examples([path], "chat", Fields(messages="m", role="from", content="value")))) == [
        example.turns
    ]


GOOD = {"role": "assistant", "content": "x"}
ASKED = {"role": "user", "content": "x"}
SYSTEM = {"role": "system", "content": "x"}


@pytest.mark.parametrize(
    ("kind", "record", "said"),
    [
        ("completion", {"prompt": "a"}, ["'completion'", "fields.completion"]),
        ("completion", {"prompt": "a", "completion": " \n"}, ["answer is empty", "'completion'"]),
        ("completion", {"prompt": "a", "completion": None}, ["answer is empty"]),
        ("completion", {"prompt": "", "completion": "a"}, ["prompt is empty"]),
        ("completion", {"prompt": "a", "completion": 3}, ["not a text but int"]),
        ("completion", {"prompt": "a", "completion": "b<|endoftext|>"}, ["<|endoftext|>"]),
        ("completion", {"prompt": "a {b}", "completion": "\ud800"}, ["surrogate"]),
        ("chat", {"messages": [ASKED]}, ["no answer", "'assistant'"]),
        ("chat", {"messages": []}, ["no answer"]),
        (
            "chat",
            {"messages": [{"role": "bot{}", "content": "x"}]},
            ["message 1", "role 'bot{}'", "system, user"],
        ),
        ("chat", {"messages": [SYSTEM, ASKED, SYSTEM, GOOD]}, ["message 3", "second system turn"]),
        ("chat", {"messages": [ASKED, SYSTEM, GOOD]}, ["message 2", "put it first"]),
        ("chat", {"messages": [ASKED, GOOD, ASKED]}, ["last message", "'user'"]),
        ("chat", {"messages": [ASKED, {"role": "assistant"}]}, ["'content'", "fields.content"]),
        ("chat", {"messages": "no JSON {"}, ["no JSON array"]),
        ("chat", {"messages": {"role": "user"}}, ["not an array of objects"]),
        ("chat", {"conversation": []}, ["'messages'", "'conversation'", "fields.messages"]),
    ],
)
def test_a_wrong_record_is_one_line_with_its_file_and_place(kind: str, record, said: list[str], tmp_path) -> None:
    good = PAIRS[0] if kind == "completion" else CHATS[1]
    path = write(tmp_path / "mine.jsonl", [good, record])
    with pytest.raises(UserError) as caught:
        check_examples(path, kind, Fields())
    line = str(caught.value)
    assert "\n" not in line
    assert all(part in line for part in (str(path), "line 2", *said)), line


def test_text_files_and_empty_ones_are_refused(tmp_path: Path) -> None:
    for name, content, said in (("a.txt", "x", ".jsonl"), ("b.jsonl", "\n", "no example"), ("c.jsonl", "3", "object")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=said):
            check_examples(tmp_path / name, "completion", Fields())
