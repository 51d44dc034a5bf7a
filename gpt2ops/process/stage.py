"""What every stage shares: a mistake of the user ends it with one line, one works at a time, it says what it does."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpt2core.errors import UserError
from gpt2ops import paths
from gpt2ops.pipeline.cache import Restored, restore_outputs
from gpt2ops.process.failures import failure_line
from gpt2ops.process.signals import TerminatedError, leave_with_parent, outlive_listeners, raise_when_asked_to_leave
from gpt2ops.process.startup import end_imports

LOCK = paths.LOGS / ".stage.lock"
_HOLDER = LOCK.with_suffix(".holder")
# A training that was asked to leave saves its checkpoint first: ten seconds for 124M parameters, more for larger ones.
LOCK_SECONDS = 120.0


def say(message: str) -> None:
    print(message, flush=True)


def run_stage(name: str, main: Callable[[], None]) -> None:
    """Run a stage's `main`; exit 1 with one line for what a user can mend, 130 for Ctrl-C, 143 for SIGTERM.

    However it fails, the outputs of its last good run are there again afterwards. It leaves when what started it is
    gone, and starts only when an earlier stage in this folder has left.
    """
    end_imports()
    outlive_listeners()
    finished = False
    heard: list[int] = []
    try:
        with raise_when_asked_to_leave() as heard, leave_with_parent(), alone(name):
            main()
        finished = True
    except KeyboardInterrupt as stop:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, TerminatedError) else signal.SIGINT))
    except Exception as error:
        if heard:
            print(f"{name}: interrupted ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
            sys.exit(128 + (signal.SIGINT if heard[0] == signal.SIGINT else signal.SIGTERM))
        lines = failure_line(name, error)
        if lines is None:
            raise
        # The ranks of a data-parallel run fail alike: one of them says so.
        for line in lines.splitlines() if _first_rank() else []:
            print(f"{name}: error: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        # A flow run's own folder had no earlier outputs: what dvc.lock lists there is another run's.
        if not finished and "GPT2_FLOW_RUN_ID" not in os.environ:
            for line in _said_of(restore_outputs(name)):
                print(f"{name}: {line}", file=sys.stderr, flush=True)


def _said_of(restored: Restored) -> Iterator[str]:
    if restored.back:
        yield f"the earlier {', '.join(map(str, restored.back))} are back in place"
    if restored.kept:
        names = ", ".join(map(str, restored.kept))
        yield f"no room to bring back the earlier {names}, which DVC's cache keeps: free some, then `dvc repro`"


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Wait until no other stage writes in this folder, such as one whose DVC was killed and that is still saving.

    Raises UserError, naming the process, where it does not leave.
    """
    from filelock import FileLock, Timeout

    if not _first_rank():
        yield
        return
    LOCK.parent.mkdir(exist_ok=True)
    lock = FileLock(LOCK)
    try:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            say(f"{name}: waiting for {_holder()}, which is still writing in this folder ...")
            lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise UserError(f"{_holder()} is writing in this folder; wait for it or stop it, and run again.") from None
    try:
        # Beside the lock: on Windows nobody else can read a locked file.
        _HOLDER.write_text(f"the stage {name} (process {os.getpid()})", encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder() -> str:
    try:
        return _HOLDER.read_text(encoding="utf-8") or "another stage"
    except OSError:
        return "another stage"


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
