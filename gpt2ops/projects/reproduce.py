"""`python -m gpt2ops.projects.reproduce`: the project's stages by DVC, in a process that can be asked to leave.

What DVC says becomes a heading a stage. On SIGTERM, or where the process that started this one has ended, the running
stage is interrupted, so that a training saves its checkpoint; the exit code is 130 then.
"""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import psutil

from gpt2ops.pipeline.lockfile import mend
from gpt2ops.process.signals import SHELLS, WATCH_SECONDS
from gpt2ops.process.stage import say
from gpt2ops.process.startup import end_imports

INTERRUPTED = 130


class Stopping:
    """Whether to stop, and interrupting what runs."""

    def __init__(self) -> None:
        self.requested = False
        self._starter = psutil.Process().parent()

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._hear)
        threading.Thread(target=self._watch, name="watch-parent", daemon=True).start()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        stages = running_stages()
        for stage in stages:
            try:
                stage.send_signal(signal.SIGINT)
            except psutil.NoSuchProcess:
                continue
        if not stages:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        while not self.requested:
            if self._starter is None or not self._starter.is_running():
                os.kill(os.getpid(), signal.SIGTERM)  # the main thread hears it
                return
            threading.Event().wait(WATCH_SECONDS)


def running_stages() -> list[psutil.Process]:
    """The processes that DVC has started, without the shells that it starts them by."""
    found = []
    for child in psutil.Process().children():
        try:
            found += child.children() if child.name() in SHELLS else [child]
        except psutil.NoSuchProcess:
            continue
    return found


class Headings(logging.Handler):
    """DVC's log as headings; warnings as they are."""

    def __init__(self, stopping: Stopping) -> None:
        super().__init__(logging.INFO)
        self._stopping = stopping

    def emit(self, record: logging.LogRecord) -> None:
        if self._stopping.requested:
            raise KeyboardInterrupt  # the stage had finished before it heard
        if record.msg == "Running stage '%s':":
            say(f"-- {record.args[0]}" if record.args else "--")  # type: ignore[index]
        elif str(record.msg).startswith("Stage '%s' is cached"):
            say(f"-- {record.args[0]}: as an earlier run left it" if record.args else "--")  # type: ignore[index]
        elif record.levelno >= logging.WARNING:
            print(f"dvc: {record.getMessage()}", file=sys.stderr, flush=True)


def problem_of(error: BaseException) -> str | None:
    """What to say of DVC's error; None for a stage that has said itself what was wrong."""
    from dvc.lock import LockError
    from dvc.stage.exceptions import StageCmdFailedError

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, LockError):
            return "another command works in this folder; wait for its end, and run again."
        if isinstance(cause, StageCmdFailedError):
            # A shell says 128 + the signal.
            killed = str(cause).endswith((f"with {-signal.SIGKILL}", f"with {128 + signal.SIGKILL}"))
            return "the stage was killed, most likely for want of memory." if killed else None
    return (str(causes[-1]).strip().splitlines() or [type(error).__name__])[0]


def main() -> int:
    stopping = Stopping()
    stopping.listen()
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
