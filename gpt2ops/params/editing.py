"""Changing params.yaml: values laid over others, `key=value` as people type it, and a file that keeps its comments."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from yaml import ScalarNode
from yaml.resolver import Resolver

from gpt2core.errors import UserError

_TAG = "tag:yaml.org,2002:"


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`train.learning_rate=1e-3`, ... as nested values. Raises UserError for what is no assignment."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(
                f"{assignment!r} is not an override; write section.key=value, as in train.learning_rate=1e-3."
            )
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
            raise UserError(f"{key}: {text!r} is not a value; quote text that has special signs.") from None
        *sections, last = key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(f"{key}: {section} was given a value before; it is a section.")
        place[last] = value
    return values


def merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `overrides` laid over, section by section; lists are replaced whole."""
    result = dict(values)
    for key, value in overrides.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result


def with_values(text: str, overrides: Mapping[str, Any]) -> str:
    """The YAML `text` with `overrides` in it, its comments and its order kept."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.indent(mapping=2, sequence=4, offset=2)
    for kind in (float, str, type(None)):
        editor.representer.add_representer(kind, _represent)
    values = editor.load(text) or {}
    _lay_over(values, overrides)
    written = io.StringIO()
    editor.dump(values, written)
    return written.getvalue()


def _represent(representer: Any, value: float | str | None) -> Any:
    """As both readers of params.yaml take it: PyYAML, unlike DVC's ruamel, reads 1e-05 as text and off as false."""
    if value is None:
        return representer.represent_scalar(_TAG + "null", "null")
    if isinstance(value, str):
        plain = Resolver().resolve(ScalarNode, value, (True, False)) == _TAG + "str"
        return representer.represent_scalar(_TAG + "str", value, style=None if plain else '"')
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return representer.represent_scalar(_TAG + "float", text)


def _lay_over(values: Any, overrides: Mapping[str, Any]) -> None:
    """In place: ruamel's mappings hold the comments."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            _lay_over(values[key], value)
        else:
            values[key] = value
