"""What commands print: JSON, tables that fit the terminal, text in the terminal's encoding."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from gpt2ops.process.console import printable

WIDTH = 80  # columns that every terminal has
MIN_COLUMN = 8


def use_plain_streams() -> None:
    """Print a character that the terminal's encoding lacks as `?` instead of raising; a closed stream takes nothing."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # as after `>&-`; the next file to be opened must not take its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def put(text: str) -> None:
    """Write to standard output and flush: `?` for what its encoding lacks, no control characters to a terminal."""
    text = printable(text) if sys.stdout.isatty() else text
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def as_line(value: Any) -> str:
    """JSON on one line, escaped to ASCII where standard output is not UTF-8."""
    return json.dumps(value, ensure_ascii=not is_utf8()) + "\n"


def put_json(value: Any) -> None:
    """`value` as indented JSON, for `--json`."""
    put(json.dumps(value, indent=2, ensure_ascii=not is_utf8()) + "\n")


def is_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def put_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,), shrink: int | None = None
) -> None:
    """Columns separated by two spaces; those in `left` are left-aligned, the others right-aligned.

    A table wider than the terminal has its column `shrink`, or else the widest of `left`, shortened. Output to a pipe
    is never shortened.
    """
    rows = [[printable(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    excess = sum(widths) + 2 * (len(widths) - 1) - terminal_width() if sys.stdout.isatty() else 0
    while excess > 0:
        column = shrink if shrink is not None else max(left, key=lambda i: widths[i])
        if widths[column] <= MIN_COLUMN:
            break
        widths[column] -= 1
        excess -= 1
    for row in [headers, *rows]:
        cells = [
            shortened(cell, width).ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        put("  ".join(cells).rstrip() + "\n")


def terminal_width() -> int:
    """Columns of the terminal; 80 in a pipe, or where it is narrower."""
    return max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if sys.stdout.isatty() else WIDTH


def shortened(text: str, width: int) -> str:
    """`text` in `width` characters, cut in the middle: names differ at their start and end."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}~{text[-end:]}"


def number(value: float | None, digits: int = 4) -> str:
    """`12,345`, `328.1`, `0.2561`, `2e-05`; `-` for None."""
    if value is None:
        return "-"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
