"""The one error that means "the user can change this". It is data until a surface shows it in its own words.

The library names its own arguments. params.yaml, the command, the page and the server each call `spelled` with their
names for them; none of them edits a sentence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from reprlib import Repr
from string import Formatter
from typing import Any

LONGEST_LINE = 1000  # characters
_LEFT_OUT = " [...] "
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 200
NOT_GIVEN: Any = ...


def shown(value: Any) -> str:
    """A value as Python writes it; a huge or nested one is abbreviated."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not write a number of thousands of digits
        return "a huge number"


@dataclass(frozen=True)
class Words:
    """How a surface writes values; the defaults are Python's."""

    true: str = "True"
    false: str = "False"
    or_none: str = ", or None"
    equals: str = "="  # between a setting and its value
    quotes: bool = True  # around a text

    def show(self, value: Any) -> str:
        if isinstance(value, bool):
            return self.true if value else self.false
        if isinstance(value, str) and not self.quotes:
            return value
        return shown(value).removesuffix(".0") if isinstance(value, float) else shown(value)

    def assign(self, name: str, value: str) -> str:
        if value in ("True", "False"):
            value = self.show(value == "True")
        elif self.equals == "=":
            value = f'"{value}"'
        return f"{name}{self.equals}{value}"


@dataclass(frozen=True)
class Problem:
    """One line: `source`: `key` (`value`) `rule`; `remedy`.

    `rule` and `remedy` are templates. {name} is a value of `data`, else another setting; {name:value} is that setting
    with a value; {or_none} says that null is allowed too. A rule that is a sentence of its own begins with a colon.
    """

    rule: str
    remedy: str = ""
    key: str = ""
    value: Any = NOT_GIVEN
    data: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)  # what the surface calls `key` and the other settings
    words: Words = Words()
    source: str = ""

    def spelled(self, name: Callable[[str], str] = str, words: Words | None = None, source: str = "") -> "Problem":
        """The same with each setting called `name(setting)`; calls compose."""
        templates = [name for text in (self.rule, self.remedy) for _, name, _, _ in Formatter().parse(text) if name]
        settings = {self.key, *templates} - self.data.keys() - {"", "or_none"}
        names = {setting: name(self.names.get(setting, setting)) for setting in settings}
        return replace(self, names=names, words=words or self.words, source=source or self.source)

    def __str__(self) -> str:
        filler = _Filler(self)
        key = self.names.get(self.key, self.key)
        subject = key if self.value is NOT_GIVEN or not key else f"{key} ({self.words.show(self.value)})"
        line = subject + ("" if self.rule.startswith(":") or not subject else " ") + filler.format(self.rule)
        if self.remedy:
            line += f"; {filler.format(self.remedy)}"
        source = f"{self.source}: " if self.source else ""
        return as_one_line(source + line + ("" if line.endswith((".", "?")) else "."))


class _Filler(Formatter):
    """Fills in the templates of a problem."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[str, str]:
        return field_name, field_name  # dots and brackets are part of a key

    def format_field(self, value: str, format_spec: str) -> str:
        problem, name = self._problem, value
        if name == "or_none":
            return problem.words.or_none
        if name not in problem.data:
            spelled = problem.names.get(name, name)
            return problem.words.assign(spelled, format_spec) if format_spec else spelled
        found = problem.data[name]
        if isinstance(found, tuple):
            return ", ".join(map(problem.words.show, found))
        return problem.words.show(found) if isinstance(found, bool) else format(found, format_spec)


class UserError(ValueError):
    """Bad input, a line for each of `problems`: what is wrong, where, and what to do.

    `UserError(key="top_p", value=1.5, rule="must be at most 1", remedy="...", **data)` is one `Problem`; a text is a
    line in words that fit every surface. What a message quotes of a file or a name may hold line ends, signs that
    steer a terminal, or megabytes: each line stays one that can be read.
    """

    def __init__(
        self,
        *problems: str | Problem,
        key: str = "",
        value: Any = NOT_GIVEN,
        rule: str = "",
        remedy: str = "",
        **data: Any,
    ) -> None:
        if rule:
            problems = (*problems, Problem(rule, remedy, key, value, data))
        super().__init__(*(as_one_line(one) if isinstance(one, str) else one for one in problems))

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))

    @property
    def problems(self) -> tuple[str | Problem, ...]:
        return self.args

    def spelled(self, name: Callable[[str], str] = str, words: Words | None = None, source: str = "") -> "UserError":
        """The same error with the names and words of a surface; see `Problem.spelled`."""
        return UserError(
            *(
                one.spelled(name, words, source) if isinstance(one, Problem) else f"{source}: {one}" if source else one
                for one in self.problems
            )
        )


def as_one_line(text: str) -> str:
    """`text` with what cannot be printed spelled out (a line end is `\\n`), and without its middle where it is long."""
    shown = _shortened(str(text))
    if not shown.isprintable():
        shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in shown)
    return _shortened(shown)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_LINE:
        return text
    half = (LONGEST_LINE - len(_LEFT_OUT)) // 2
    return text[:half] + _LEFT_OUT + text[-half:]
