"""Waiting for a state, however long a busy machine takes to reach it."""

import subprocess
import time
from collections.abc import Callable

HANGS = 300.0  # seconds after which it will not come any more


def wait_until(
    condition: Callable[[], object],
    process: "subprocess.Popen[str] | subprocess.Popen[bytes] | None" = None,
    *,
    seconds: float = HANGS,
    interval: float = 0.05,
) -> None:
    """Return once `condition` holds; AssertionError where `process` ends before it, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, f"still not so after {seconds:.0f} s"
        time.sleep(interval)
