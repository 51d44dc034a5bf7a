"""The bar of a stage that takes longer than a moment."""

import sys
from typing import Any

SILENT_SECONDS = 2


def progress_bar(what: str, total: int | None, unit: str) -> Any:
    """A tqdm bar on stderr that shows itself after two seconds; in a log file it writes a line now and then."""
    from tqdm import tqdm

    pause = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, delay=SILENT_SECONDS, mininterval=pause)
