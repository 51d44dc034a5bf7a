"""What every stage shares: one line for a user's mistake, exit codes, and a lock so that one stage runs at a time."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpt2core.errors import UserError
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.cache import Restored, restore_outputs
from gpt2ops.process.console import say
from gpt2ops.process.failures import failure_line
from gpt2ops.process.signals import (
    TerminatedError,
    is_rank,
    keep_output_open,
    leave_with_parent,
    raise_when_asked_to_leave,
)
from gpt2ops.process.startup import end_imports

LOCK = paths.LOGS / ".stage.lock"
_HOLDER = LOCK.with_suffix(".holder")
# A training that is stopping saves its checkpoint first: ten seconds for 124M parameters, more for larger models.
LOCK_SECONDS = 120.0


def run_stage(name: str, main: Callable[[], None]) -> None:
    """Run a stage's `main`; exit 1 with one line for what a user can fix, 130 for Ctrl-C, 143 for SIGTERM.

    A failed stage's earlier outputs are restored. The stage stops when its parent process ends, and starts only after
    an earlier stage in this folder has ended.
    """
    end_imports()
    keep_output_open()
    finished = False
    received: list[int] = []
    try:
        with raise_when_asked_to_leave() as received, leave_with_parent(), alone(name):
            main()
        finished = True
    except KeyboardInterrupt as stop:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        sys.exit(128 + (signal.SIGTERM if isinstance(stop, TerminatedError) else signal.SIGINT))
    except Exception as error:
        if received:
            print(f"{name}: interrupted ({type(error).__name__}: {error})", file=sys.stderr, flush=True)
            sys.exit(128 + (signal.SIGINT if received[0] == signal.SIGINT else signal.SIGTERM))
        lines = failure_line(name, error)
        if lines is None:
            raise
        # All ranks of a data-parallel run fail alike: the first reports it.
        for line in lines.splitlines() if _first_rank() else []:
            print(f"{name}: error: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        # A flow run's workspace had no earlier outputs: its dvc.lock lists those of another run.
        if not finished and "GPT2_FLOW_RUN_ID" not in os.environ:
            for line in _restored_lines(restore_outputs(name)):
                print(f"{name}: {line}", file=sys.stderr, flush=True)


def _restored_lines(restored: Restored) -> Iterator[str]:
    if restored.back:
        yield f"restored the earlier {', '.join(map(str, restored.back))}"
    if restored.kept:
        names = ", ".join(map(str, restored.kept))
        yield f"no space to restore the earlier {names}, which stay in DVC's cache: free some, then `dvc repro`"


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold the folder's stage lock. Waits for another stage, such as one that still saves after its DVC was killed.

    Raises UserError, naming the process, where that one does not end in LOCK_SECONDS.
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
        # Beside the lock: on Windows no other process can read a locked file.
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
    return not is_rank() or os.environ["RANK"] == "0"
