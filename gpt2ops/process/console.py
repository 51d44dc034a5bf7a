"""What a stage prints: lines on standard output, a progress bar on standard error."""

import re
import sys
from typing import Any

SILENT_SECONDS = 2
# All but line breaks and tabs: an escape sequence in a name could move the cursor or change what stands above.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """`text` with control characters as escapes, such as `\\x1b`."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def say(message: str) -> None:
    """Print what a stage has to say; names in it may come from a store that others write to."""
    print(printable(message), flush=True)


def progress_bar(what: str, total: int | None, unit: str) -> Any:
    """A tqdm bar on stderr, shown after two seconds; where stderr is no terminal, a line every ten seconds."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, delay=SILENT_SECONDS, mininterval=interval)
