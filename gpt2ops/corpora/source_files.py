"""A file of the source as `data` says it is to be read: as text, or as examples with answers."""

from collections.abc import Iterator
from pathlib import Path

from gpt2core.data.corpus import check_file, read_corpus
from gpt2core.data.examples.reading import Fields, check_examples, read_examples
from gpt2core.tokenizer import END_OF_TEXT
from gpt2ops.params.sections import Data

PROMPT_WORDS = 4  # of a text
MOST_PROMPTS = 2  # of examples


def fields_of(data: Data) -> Fields:
    """The library's names of the fields."""
    return Fields(**data.fields.model_dump())


def check_source_file(path: Path, data: Data) -> None:
    """Read all of `path`. Raises UserError where it is not what `data` says, or empty."""
    if data.format == "text":
        check_file(path, text_field=data.text_field, documents=data.documents)
    else:
        check_examples(path, data.format, fields_of(data))


def first_prompts(path: Path, data: Data) -> list[str]:
    """What to sample with: the first words of the text and an empty prompt, or the first prompts of the examples."""
    if data.format == "text":
        start = next(iter(read_corpus([path], text_field=data.text_field, documents=data.documents)), "")
        words = " ".join(start.partition(END_OF_TEXT)[0][:500].split()[:PROMPT_WORDS])
        return list(dict.fromkeys([words, ""]))
    return list(dict.fromkeys(_prompts(path, data)))


def _prompts(path: Path, data: Data) -> Iterator[str]:
    examples = read_examples([path], data.format, fields_of(data))
    for _, example in zip(range(MOST_PROMPTS), examples, strict=False):
        yield next(turn.content for turn in example.turns if turn.role == "user")
