"""What params.yaml calls an argument of the library."""

from pydantic import BaseModel

from gpt2ops.params.problems import is_section
from gpt2ops.params.schema import Params


def key_of_argument(argument: str, section: str = "") -> str:
    """`train.batch_size` for `batch_size` and the section `train`, which is searched before the others.

    A dotted name, and one that no section has, are returned as they are.
    """
    found: dict[str, str] = {}
    for place in sorted(_fields(Params), key=lambda name: name != section):
        for key in _keys_below(_fields(Params)[place], place):
            found.setdefault(key.rpartition(".")[2], key)
    return found.get(argument, argument)


def _fields(section: type[BaseModel]) -> dict[str, object]:
    return {field.alias or name: field.annotation for name, field in section.model_fields.items()}


def _keys_below(kind: object, place: str) -> list[str]:
    """The dotted keys of a section, its own before those of the sections in it."""
    if not is_section(kind):
        return []
    fields = _fields(kind)
    own = [f"{place}.{name}" for name in fields]
    return own + [key for name, inner in fields.items() for key in _keys_below(inner, f"{place}.{name}")]
