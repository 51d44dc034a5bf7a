"""What pydantic found wrong, in lines for the person who wrote it."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

MOST_LINES = 20
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 200


def shown(value: Any) -> str:
    """A value as Python writes it, without the most of one that is huge or nested."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not write a number of thousands of digits
        return "a huge number"


def lines_of(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """A line for each problem: key, value, rule, and for an unknown key the nearest known one of `root`."""
    lines: list[str] = []
    seen: dict[str, int] = {}  # a union gives a problem for each of its branches
    for problem in error.errors():
        # pydantic puts the branch of a union at the end of the location; users know keys only.
        whole = list(problem["loc"])
        own = whole[-1:] if problem["type"] == "extra_forbidden" else []  # what somebody wrote, whatever it is like
        location = [
            part
            for part in whole[: len(whole) - len(own)]
            if part not in ("int", "float", "str", "bool") and "[" not in str(part)
        ] + own
        key = spell(location)
        if problem["type"] == "extra_forbidden":
            known = known_keys(root, location[:-1])
            nearest = nearest_key(str(location[-1]), root, location[:-1])
            hint = f"did you mean {nearest}?" if nearest else f"known: {', '.join(known)}."
            line = f"unknown key {key}; {hint}"
        elif problem["type"] == "value_error":
            line = _named(str(problem["ctx"]["error"]), key, known_keys(root, location))
        elif problem["type"] == "model_type":
            given = "" if problem["input"] is None else f" ({shown(problem['input'])})"
            line = f"{key or 'the file'}{given} must be a section: `key: value` lines, indented under its name."
        elif problem["type"] == "missing":
            line = f"{key} is missing; give it."
        elif key in seen:
            lines[seen[key]] = f"{lines[seen[key]].removesuffix('.')}; or {_lower_first(problem['msg'])}."
            continue
        else:
            line = f"{key} ({shown(problem['input'])}): {_lower_first(problem['msg'])}."
            seen[key] = len(lines)
        if line not in lines:
            lines.append(line)
    return lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more problems."]


def nearest_key(word: str, root: type[BaseModel], location: Sequence[str | int]) -> str | None:
    """The key of the section at `location`, or of a section in it, that `word` is most like."""
    spelled = {key: key for key in known_keys(root, location)}
    for section in list(spelled):
        for key in known_keys(root, [*location, section]):
            spelled.setdefault(key, f"{section}.{key}")
    nearest = get_close_matches(word, spelled, n=1, cutoff=0.5)
    return spelled[nearest[0]] if nearest else None


def spell(location: Sequence[str | int]) -> str:
    """`sample.settings[1].top_p`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _named(message: str, key: str, keys: Sequence[str]) -> str:
    """A message of our own, with its key in front; one that begins with a key of the section goes on from there."""
    if not key or f"{key}." in message:
        return message
    first = re.match(r"(\w+)( \(|\[)", message)
    return f"{key}.{message}" if first and first[1] in keys else f"{key}: {message}"


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def known_keys(root: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Keys of the section at `location` under `root`, as a file has them."""
    section: Any = root
    for part in location:
        if isinstance(part, int):
            section = next(iter(get_args(section)), None)
        elif _is_section(section):
            section = next((f.annotation for name, f in section.model_fields.items() if part in (name, f.alias)), None)
        else:
            return []
    return [field.alias or name for name, field in section.model_fields.items()] if _is_section(section) else []


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
