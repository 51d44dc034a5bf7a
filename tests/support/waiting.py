"""Waiting for what another process does, however long a busy machine takes to it."""

import subprocess
import time
from collections.abc import Callable

HANGS = 300.0  # seconds after which a process that still lives will not get there


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    """Return once `condition` holds; fails where the process ends before it, or hangs."""
    deadline = time.monotonic() + HANGS
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}: {process.communicate()}"
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.05)
