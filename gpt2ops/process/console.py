"""What a stage prints: lines on standard output, a progress bar on standard error."""

import sys
from typing import Any

SILENT_SECONDS = 2


def say(message: str) -> None:
    print(message, flush=True)


def progress_bar(what: str, total: int | None, unit: str) -> Any:
    """A tqdm bar on stderr, shown after two seconds; where stderr is no terminal, a line every ten seconds."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, delay=SILENT_SECONDS, mininterval=interval)
