"""What commands print: lines of JSON, tables that fit a terminal, text on whatever the terminal can show."""

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

WIDTH = 80  # columns that every terminal has
MIN_COLUMN = 8


def use_plain_streams() -> None:
    """A character that the terminal's encoding lacks is shown as `?`, and stops nothing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def put(text: str) -> None:
    """To standard output at once, whatever the terminal's encoding can show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def as_line(value: Any) -> str:
    """JSON that loses nothing, also where standard output is not UTF-8."""
    return json.dumps(value, ensure_ascii=not is_utf8()) + "\n"


def put_json(value: Any) -> None:
    """`value` as indented JSON, for `--json`."""
    put(json.dumps(value, indent=2, ensure_ascii=not is_utf8()) + "\n")


def is_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def put_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,), gives_way: int | None = None
) -> None:
    """Columns two blanks apart: those numbered in `left` begin at the left, numbers end at the right.

    Where it would be wider than the terminal, the column `gives_way`, or else the widest of `left`, is shortened;
    a pipe gets every name whole, for what reads it.
    """
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    excess = sum(widths) + 2 * (len(widths) - 1) - terminal_width() if sys.stdout.isatty() else 0
    while excess > 0:
        column = gives_way if gives_way is not None else max(left, key=lambda i: widths[i])
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
    """`text` in `width` characters; the middle goes, for names begin and end with what tells them apart."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}~{text[-end:]}"


def number(value: float | None, digits: int = 4) -> str:
    """`12,345`, `328.1`, `0.2561`, `2e-05`; `-` for what was not measured."""
    if value is None:
        return "-"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
