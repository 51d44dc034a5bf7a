"""What every stage shares: a user's mistake ends it with one line, and it says what it is doing."""

import sys
from collections.abc import Callable

from gpt2core.errors import UserError
from tasks.outputs import restore_outputs


def say(message: str) -> None:
    print(message, flush=True)


def run_stage(name: str, main: Callable[[], None]) -> None:
    """Run a stage's `main`; exit 1 with one line for a UserError or a full disk, 130 for Ctrl-C.

    However it fails, the outputs of its last good run are there again afterwards.
    """
    finished = False
    try:
        main()
        finished = True
    except UserError as error:
        for line in str(error).splitlines():
            print(f"{name}: error: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        where = f" at {error.filename}" if error.filename else ""
        print(f"{name}: error: no space left on the disk{where}; free some and run again.", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    finally:
        if not finished and (restored := restore_outputs(name)):
            print(f"{name}: the earlier {', '.join(map(str, restored))} are back in place", file=sys.stderr, flush=True)
