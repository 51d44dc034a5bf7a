"""What every stage shares: a user's mistake ends it with one line, and it says what it is doing."""

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper

from tasks.failures import failure_line
from tasks.outputs import restore_outputs


def say(message: str) -> None:
    print(message, flush=True)


def run_stage(name: str, main: Callable[[], None]) -> None:
    """Run a stage's `main`; exit 1 with one line for what a user can mend, 130 for Ctrl-C.

    However it fails, the outputs of its last good run are there again afterwards.
    """
    finished = False
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character stops nothing
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        main()
        finished = True
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except Exception as error:
        lines = failure_line(name, error)
        if lines is None:
            raise
        # The ranks of a data-parallel run fail alike: one of them says so.
        for line in lines.splitlines() if os.environ.get("RANK", "0") == "0" else []:
            print(f"{name}: error: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        # A flow run's own folder had no earlier outputs: what dvc.lock lists there is another run's.
        if not finished and "GPT2_FLOW_RUN_ID" not in os.environ and (restored := restore_outputs(name)):
            print(f"{name}: the earlier {', '.join(map(str, restored))} are back in place", file=sys.stderr, flush=True)
