"""The data model of a report: sections made of typed blocks. Both renderers, HTML and PDF, dispatch on `kind`."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gpt2ops.process.redact import redact

GAP = re.compile(r"\n(?:[ \t]*\n){4,}")


@dataclass(frozen=True)
class Paragraph:
    text: str
    kind: str = field(default="paragraph", init=False)


@dataclass(frozen=True)
class Facts:
    """A list of (name, value)."""

    rows: Sequence[tuple[str, str]]
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True)
class Cell:
    text: str
    detail: str = ""  # smaller, below the text
    link: str = ""


@dataclass(frozen=True)
class Row:
    """The first cell is the row's heading."""

    cells: Sequence[Cell]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    caption: str
    head: Sequence[str]
    rows: Sequence[Row]
    numeric: Sequence[int] = ()  # columns set to the right
    note: str = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Figure:
    """A chart: `wide` for a page, `narrow` for a phone; the same where only one was drawn."""

    title: str
    alt: str
    caption: str
    wide: str
    narrow: str


@dataclass(frozen=True)
class Figures:
    figures: Sequence[Figure]
    columns: int = 1
    kind: str = field(default="figures", init=False)


@dataclass(frozen=True)
class Sample:
    """A generated text with its prompt."""

    label: str
    prompt: str
    text: str
    note: str
    before: bool = False
    warning: str = ""


@dataclass(frozen=True)
class Samples:
    title: str
    samples: Sequence[Sample]
    kind: str = field(default="samples", init=False)


@dataclass(frozen=True)
class Code:
    label: str
    text: str
    kind: str = field(default="code", init=False)


@dataclass(frozen=True)
class Points:
    """A bullet list."""

    items: Sequence[str]
    kind: str = field(default="points", init=False)


_DRAWINGS = {"wide", "narrow"}  # SVG of our own, not user text

Block = Paragraph | Facts | Table | Figures | Samples | Code | Points


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """`tone` gives the verdict its colour: generalising, memorising, underfitting or unknown."""

    title: str
    subtitle: str
    tone: str
    verdict: str  # one word
    sentence: str  # the evidence for the verdict
    advice: str
    tiles: Sequence[tuple[str, str, str]]  # label, value, remark
    sections: Sequence[Section]

    def as_dict(self) -> dict[str, Any]:
        """For a template, without passwords in URLs and without control characters, which HTML and PDF do not allow."""
        values: dict[str, Any] = _each_text(asdict(self), visible)
        return values


def visible(text: str) -> str:
    """`text` with control characters replaced by their symbols (U+2400 on), and without passwords in URLs."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]", _symbol, redact(text).replace("\r\n", "\n"))


def _symbol(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return "\n" if unicodedata.category(match[0]) in ("Zl", "Zp") else "\ufffd"


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: entry if key in _DRAWINGS else _each_text(entry, change) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(entry, change) for entry in value]
    return value


NONE = "-"


def loss_text(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def perplexity_text(value: float | None) -> str:
    if value is None:
        return NONE
    if value >= 1e7:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share_text(value: float | None, digits: int = 0) -> str:
    return NONE if value is None else f"{100 * value:.{digits}f}%"


def count_text(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def size_text(size_bytes: float) -> str:
    """For example 1.0 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000 or unit == "GB":
            break
        size_bytes /= 1000
    return f"{size_bytes:,.0f} {unit}" if unit == "bytes" else f"{size_bytes:,.1f} {unit}"


def duration_text(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def without_gaps(text: str) -> str:
    """Replaces more than three consecutive empty lines by their count: a weak model writes hundreds."""
    return GAP.sub(lambda gap: f"\n[{gap[0].count(chr(10)) - 1} empty lines]\n", text)


def shortened(text: str, limit: int) -> str:
    """At most `limit` characters, and the number of those omitted."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} more characters)"
