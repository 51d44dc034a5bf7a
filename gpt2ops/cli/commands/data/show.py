"""`gpt2 data show`: the first examples of a file, token by token, as the model will see them."""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2ops.cli.flags.finetune import TEXT_FLAGS, add_flag, reading
from gpt2ops.cli.output import as_line, put

if TYPE_CHECKING:
    import numpy as np

    from gpt2ops.params.sections import Data

DESCRIPTION = """\
The first examples of a file, a token a line: its id, its text, and `train` where
the model learns to write it. Of examples these are the answers, each with the
<|endoftext|> that closes it; of plain text all tokens.

Without --format, records with a field `messages` are chat, records with a prompt
and a completion are that, and all else is text."""
EXAMPLES = """\
examples:
  gpt2 data show faq.jsonl
  gpt2 data show faq.csv --prompt-field question --completion-field answer
  gpt2 data show chats.jsonl --count 1 --json | jq '.tokens[] | select(.trained)'"""


@dataclass(frozen=True)
class Shown:
    """An example or a document: where it stands, token ids uint16 (N,), and which are trained, uint8 (N,)."""

    place: str
    ids: "np.ndarray"
    trained: "np.ndarray"


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help=".jsonl, .json, .csv, .tsv, .parquet, .txt or .md, also compressed"
    )
    parser.add_argument("--count", type=int, default=5, metavar="N", help="examples to show (default: 5)")
    parser.add_argument("--json", action="store_true", help="an object a line, one for each example")
    for flag in TEXT_FLAGS:
        add_flag(parser, flag)


def show(arguments: argparse.Namespace) -> None:
    """Print them. Raises UserError for a file that cannot be read, and for a wrong record among the first."""
    from gpt2core.errors import UserError
    from gpt2core.storage.files import with_home
    from gpt2core.tokenizer import Tokenizer
    from gpt2ops.projects.settings import data_of

    if arguments.count < 1:
        raise UserError(f"--count ({arguments.count}) must be at least 1.")
    path, names = with_home(arguments.file), {flag.key: flag.name for flag in TEXT_FLAGS}
    try:
        data = data_of(reading(arguments))
        if arguments.format is None:
            data = data.model_copy(update={"format": format_of(path, data)})
        shown = list(itertools.islice(tokens_of(path, data), arguments.count))
    except UserError as error:
        raise error.spelled(lambda name: names.get(f"data.{name}", f"--set data.{name}")) from None
    if not shown:
        raise UserError(f"{path} holds no text.")
    tokenizer = Tokenizer()
    for one in shown:
        tokens = [
            {"id": int(token), "text": tokenizer.decode([token]), "trained": bool(kind)}
            for token, kind in zip(one.ids.tolist(), one.trained.tolist(), strict=True)
        ]
        put(
            as_line({"record": one.place, "format": data.format, "tokens": tokens})
            if arguments.json
            else page(one, tokens)
        )


def page(one: Shown, tokens: list[dict[str, Any]]) -> str:
    """A heading, and a line a token."""
    lines = [f"{one.place}: {len(tokens):,} tokens, {int(one.trained.sum()):,} trained"]
    lines += [f"  {'train' if token['trained'] else '':5} {token['id']:6} {token['text']!r}" for token in tokens]
    return "\n".join(lines) + "\n\n"


def format_of(path: Path, data: "Data") -> str:
    """What a file holds, by the fields of its first record."""
    from gpt2core.data.corpus import RECORDS, file_format
    from gpt2core.data.examples.reading import first_record

    if file_format(path).kind not in RECORDS:
        return "text"
    record = first_record(path)
    if data.fields.messages in record:
        return "chat"
    return "completion" if {data.fields.prompt, data.fields.completion} <= record.keys() else "text"


def tokens_of(path: Path, data: "Data") -> Iterator[Shown]:
    """The file's examples or documents."""
    import numpy as np

    from gpt2core.data.corpus import read_corpus
    from gpt2core.data.examples.reading import read_examples
    from gpt2core.data.examples.template import TEMPLATES
    from gpt2core.tokenizer import END_OF_TEXT, Tokenizer
    from gpt2ops.corpora.source_files import fields_of

    if data.format != "text":
        for example in read_examples([path], data.format, fields_of(data)):
            yield Shown(f"{example.file}, {example.where}", *TEMPLATES[data.format].encode(example.turns))
        return
    rest, number = "", 0
    for fragment in read_corpus([path], text_field=data.text_field, documents=data.documents):
        *documents, rest = (rest + fragment).split(END_OF_TEXT)
        for document in documents:
            number += 1
            ids = Tokenizer().encode_array(document + END_OF_TEXT)
            yield Shown(f"{path.name}, document {number}", ids, np.ones(len(ids), dtype=np.uint8))
