"""`python -m gpt2ops.projects.reproduce`: runs the project's stages by DVC, and prints a heading for each.

On SIGTERM, or when the parent process ends, the running stage is interrupted, so that a training saves its checkpoint;
the exit code is 130 then.
"""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

import logging
import signal
import sys
from pathlib import Path
from types import FrameType

import psutil

from gpt2ops.pipeline.lockfile import mend
from gpt2ops.process.console import say
from gpt2ops.process.signals import SHELLS, leave_with_parent
from gpt2ops.process.startup import end_imports

INTERRUPTED = 130


class Stopping:
    """SIGTERM interrupts the running stage; `requested` is true from then on."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._interrupt)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        stages = running_stages()
        for stage in stages:
            try:
                stage.send_signal(signal.SIGINT)
            except psutil.NoSuchProcess:
                continue
        if not stages:
            raise KeyboardInterrupt


def running_stages() -> list[psutil.Process]:
    """The stages' processes that DVC started, without the shells in between."""
    found = []
    for child in psutil.Process().children():
        try:
            found += child.children() if child.name() in SHELLS else [child]
        except psutil.NoSuchProcess:
            continue
    return found


class Headings(logging.Handler):
    """Prints a heading for each stage that DVC's log names, and DVC's warnings unchanged."""

    def __init__(self, stopping: Stopping) -> None:
        super().__init__(logging.INFO)
        self._stopping = stopping

    def emit(self, record: logging.LogRecord) -> None:
        if self._stopping.requested:
            raise KeyboardInterrupt  # the stage finished before the signal reached it
        if record.msg == "Running stage '%s':":
            say(f"-- {record.args[0]}" if record.args else "--")  # type: ignore[index]
        elif str(record.msg).startswith("Stage '%s' is cached"):
            say(f"-- {record.args[0]}: restored from DVC's cache" if record.args else "--")  # type: ignore[index]
        elif record.levelno >= logging.WARNING:
            print(f"dvc: {record.getMessage()}", file=sys.stderr, flush=True)


def problem_of(error: BaseException) -> str | None:
    """The message for DVC's error; None for a stage that failed and printed its own."""
    from dvc.lock import LockError
    from dvc.stage.exceptions import StageCmdFailedError

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, LockError):
            return "another command is using this folder; wait until it has finished, and run again."
        if isinstance(cause, StageCmdFailedError):
            # A shell says 128 + the signal.
            killed = str(cause).endswith((f"with {-signal.SIGKILL}", f"with {128 + signal.SIGKILL}"))
            return "the stage was killed, most likely because memory ran out." if killed else None
    return (str(causes[-1]).strip().splitlines() or [type(error).__name__])[0]


def main() -> int:
    stopping = Stopping()
    logger = logging.getLogger("dvc")
    import dvc.logger  # noqa: F401  # adds its own handlers

    logger.handlers = [Headings(stopping)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    end_imports()
    for line in mend(Path.cwd()):
        print(f"dvc: {line}", file=sys.stderr, flush=True)
    try:
        with leave_with_parent():
            Repo().reproduce()
    except KeyboardInterrupt:
        return INTERRUPTED
    except DvcException as error:
        if stopping.requested:
            return INTERRUPTED
        problem = problem_of(error)
        if problem is not None:
            print(f"dvc: error: {problem}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
