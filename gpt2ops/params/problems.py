"""What pydantic found wrong, as problems for the person who wrote it."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from gpt2core.errors import NOT_GIVEN, Problem, UserError, Words

MOST_LINES = 20
MOST_EXAMINED = 100  # a key may resemble any of all known ones
YAML = Words(true="true", false="false", or_none=", or null", equals=": ")
FLAG_WORDS = Words(true="true", false="false", or_none="", equals=" ", quotes=False)


def user_error(error: ValidationError, root: type[BaseModel]) -> UserError:
    """A problem for each of pydantic's: key, value, rule, and for an unknown key the nearest known one of `root`."""
    found: list[Problem | str] = []
    seen: dict[str, int] = {}  # a union gives a problem for each of its branches
    problems = error.errors(include_url=False)
    for problem in problems[:MOST_EXAMINED]:
        location = _location(problem["type"], problem["loc"])
        key = spell(location)
        value, reason = problem.get("input", NOT_GIVEN), _lower_first(problem["msg"])
        new: list[Problem | str]
        if problem["type"] == "extra_forbidden":
            nearest = nearest_key(str(location[-1]), root, location[:-1])
            known = ", ".join(known_keys(root, location[:-1]))
            new = [f"unknown key {key}; " + (f"did you mean {nearest}?" if nearest else f"known: {known}.")]
        elif problem["type"] == "value_error":
            new = _within(key, problem["ctx"]["error"])
        elif problem["type"] == "model_type":
            rule = "must be a section: `key: value` lines, indented under its name"
            new = [Problem(rule, key=key or "the file", value=NOT_GIVEN if value is None else value)]
        elif problem["type"] == "missing":
            new = [Problem("is missing", "give it", key)]
        elif key in seen:
            other = found[seen[key]]
            assert isinstance(other, Problem)
            found[seen[key]] = replace(other, data={"reason": f"{other.data['reason']}; or {reason}"})
            continue
        else:
            new = [Problem(": {reason}", key=key, value=value, data={"reason": reason})]
            seen[key] = len(found)
        found += [one for one in new if one not in found]
    more = max(0, len(found) - MOST_LINES) + max(0, len(problems) - MOST_EXAMINED)
    if more:
        found = [*found[:MOST_LINES], f"and {more:,} more problems."]
    return UserError(*(one.spelled(words=YAML) if isinstance(one, Problem) else one for one in found))


def _location(kind: str, whole: Sequence[str | int]) -> list[str | int]:
    """The keys of a location, at whose end pydantic puts the branch of a union."""
    own = whole[-1:] if kind == "extra_forbidden" else ()  # what somebody wrote, whatever it is like
    parts = whole[: len(whole) - len(own)]
    return [part for part in parts if part not in ("int", "float", "str", "bool") and "[" not in str(part)] + [*own]


def _within(section: str, error: ValueError) -> list[Problem | str]:
    """What a validator of our own has found: its keys are those of `section`, which may be a single key."""
    found: list[Problem | str] = []
    for one in error.problems if isinstance(error, UserError) else (str(error),):
        if isinstance(one, str):
            one = Problem(": {reason}", data={"reason": one}) if section else one
        if isinstance(one, Problem) and section:
            one = one.spelled(lambda name: f"{section}.{name}")
            if not one.key and not one.names:  # its sentence names no key
                rule = one.rule if one.value is not NOT_GIVEN or one.rule.startswith(":") else f": {one.rule}"
                one = replace(one, key=section, rule=rule)
        found.append(one)
    return found


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
