"""Examples in files of records: a prompt with its completion, or the messages of a conversation."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2core.data.corpus import RECORDS, file_format
from gpt2core.data.examples.template import ANSWER, ROLES, Turn
from gpt2core.data.records import csv_records, json_records, jsonl_records, named, parquet_records
from gpt2core.data.text_files import decoded, decompressed, refused
from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT, check_unicode

FORMATS = ("completion", "chat")


@dataclass(frozen=True)
class Fields:
    """Names of the fields or columns; `role` and `content` are those of a message."""

    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"
    role: str = "role"
    content: str = "content"


@dataclass(frozen=True)
class Example:
    """The last turn is an answer."""

    turns: tuple[Turn, ...]
    file: str
    where: str  # the record in the file, such as `line 3`


class _RecordError(Exception):
    """What is wrong with a record, of which the reader knows the place."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason, self.remedy = reason, remedy


def read_examples(
    files: Iterable[Path], kind: str, fields: Fields, *, on_bytes: Callable[[int], None] | None = None
) -> Iterator[Example]:
    """The examples of `files` in order; `kind` is one of FORMATS.

    Raises UserError naming file and record of one without an answer, of an unknown role or of wrong fields.
    """
    turns_of = _completion if kind == "completion" else _chat
    columns = [fields.prompt, fields.completion] if kind == "completion" else [fields.messages]
    for path in files:
        for where, record in _records(path, columns, on_bytes or _ignore):
            if not isinstance(record, dict):
                raise refused(path, f"{where}: not an object but {type(record).__name__}")
            try:
                turns = turns_of(record, fields)
            except _RecordError as error:
                raise refused(path, f"{where}: {error.reason}", error.remedy) from None
            yield Example(turns, path.name, where)


def first_record(path: Path) -> dict[str, Any]:
    """The first record of a file, empty where there is none or it is no object. Raises UserError as `read_examples`."""
    _, record = next(_records(path, None, _ignore), ("", {}))
    return record if isinstance(record, dict) else {}


def check_examples(path: Path, kind: str, fields: Fields) -> None:
    """Read all of `path`. Raises UserError if `read_examples` cannot read it, or if it has none."""
    if not sum(1 for _ in read_examples([path], kind, fields)):
        raise refused(path, "the file holds no example", "give one with records")


def _ignore(num_bytes: int) -> None:
    pass


def _records(path: Path, columns: list[str] | None, on_bytes: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """Each with its place; of a .parquet file `columns` only, all where it is None."""
    suffix, compression = file_format(path)
    if suffix not in RECORDS:
        raise refused(path, f"examples are records, and {suffix} is text", f"give {', '.join(RECORDS)}")
    if suffix == ".parquet":
        return parquet_records(path, columns, on_bytes)
    blocks = decoded(path, decompressed(path, compression, on_bytes))
    if suffix in (".csv", ".tsv"):
        return csv_records(path, blocks, "," if suffix == ".csv" else "\t")
    return (json_records if suffix == ".json" else jsonl_records)(path, blocks)


def _completion(record: Mapping[str, Any], fields: Fields) -> tuple[Turn, ...]:
    prompt = _text(record, fields.prompt, "prompt", "the prompt")
    return Turn("user", prompt), Turn(ANSWER, _text(record, fields.completion, "completion", "the answer"))


def _chat(record: Mapping[str, Any], fields: Fields) -> tuple[Turn, ...]:
    messages = _field(record, fields.messages, "messages")
    if isinstance(messages, str):  # a column of a .csv
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError):
            raise _RecordError(f"field {fields.messages!r} is a text that is no JSON array") from None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _RecordError(f"field {fields.messages!r} is not an array of objects")
    turns: list[Turn] = []
    for number, message in enumerate(messages, start=1):
        role = _field(message, fields.role, "role")
        if role not in ROLES:
            known = ", ".join(ROLES)
            raise _RecordError(f"message {number} has the unknown role {role!r}", f"the roles are {known}")
        if role == "system" and any(turn.role == "system" for turn in turns):
            raise _RecordError(f"message {number} is a second system turn", "join them into one")
        if role == "system" and turns:
            raise _RecordError(f"message {number} is a system turn after others", "put it first")
        what = "the answer" if role == ANSWER else "the text"
        turns.append(Turn(role, _text(message, fields.content, "content", f"{what} of message {number}")))
    if not any(turn.role == ANSWER for turn in turns):
        raise _RecordError(f"it has no answer (a message of the role {ANSWER!r})", "remove it or add one")
    if not any(turn.role == "user" for turn in turns):
        raise _RecordError("it has no prompt (a message of the role 'user')", "remove it or add one")
    if turns[-1].role != ANSWER:
        raise _RecordError(f"its last message is not an answer but of the role {turns[-1].role!r}")
    return tuple(turns)


def _field(record: Mapping[str, Any], name: str, key: str) -> Any:
    if name not in record:
        found = named(record)
        raise _RecordError(f"no field {name!r} (it has {found})", f"set {{fields.{key}}}")
    return record[name]


def _text(record: Mapping[str, Any], name: str, key: str, what: str) -> str:
    text = _field(record, name, key)
    if text is None or (isinstance(text, str) and not text.strip()):
        raise _RecordError(f"{what} is empty (field {name!r})", "remove the record or fill it in")
    if not isinstance(text, str):
        raise _RecordError(f"field {name!r} is not a text but {type(text).__name__}")
    try:
        check_unicode(text)
    except UserError as error:
        raise _RecordError(f"field {name!r}: {error}") from None
    if END_OF_TEXT in text:
        raise _RecordError(f"field {name!r} has {END_OF_TEXT}, which closes an answer", "remove it")
    return text
