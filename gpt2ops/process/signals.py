"""Signals, the end of the parent process, and output whose reader has gone."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Self

import psutil

SHELLS = {"sh", "bash", "dash", "zsh"}
WATCH_SECONDS = 0.5
# Of the environment: what torchrun sets for each process, and what torch.distributed needs.
RANK_VARIABLES = {"TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
FLOW_PROCESS = "GPT2_FLOW_PROCESS"  # environment variable: process id of the flow run, which DVC may outlive


def spawn_ranks(count: int) -> NoReturn:
    """Replace this process by `torchrun` with `count` processes on this machine, which run the module of this one."""
    module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]  # a stage is started by `python -m`
    arguments = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.flags.safe_path:  # the ranks have no `-P`
        environment["PYTHONSAFEPATH"] = "1"
    os.execve(sys.executable, [sys.executable, *arguments], environment)


def is_rank() -> bool:
    """Whether torchrun started this process as one of several: some of its variables may be another program's."""
    return os.environ.keys() >= RANK_VARIABLES


@contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install `handler` for these signals; the previous handlers come back at the end."""
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or SIGHUP as an exception, so that `with` and `finally` blocks close what is open."""


class Interruption:
    """Records SIGTERM, SIGHUP and SIGINT, so that a training stops after its step; a second SIGINT ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Self:
        self._handling = handling((*leave_signals(), signal.SIGINT), self._record)
        self._handling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handling.__exit__(*error)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this step; the checkpoint is being saved ...", file=sys.stderr, flush=True)


def leave_signals() -> list[int]:
    """SIGTERM and SIGHUP, without those that the parent process made this one ignore (`nohup`)."""
    asked = [signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]
    return [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def raise_when_asked_to_leave() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP raise TerminatedError, SIGINT KeyboardInterrupt.

    Gives the list of signals received: C code may have replaced the exception by another one.
    """
    received: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the closing of files
        raise TerminatedError(number)

    interrupt = [] if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else [signal.SIGINT]
    with handling((*leave_signals(), *interrupt), leave):
        yield received


@contextmanager
def leave_with_parent() -> Iterator[None]:
    """Send this process SIGTERM when the process that started it has ended.

    A killed DVC leaves its stages running; the next `dvc repro` would start a second writer.
    """
    ancestors, finished = _watched_ancestors(), threading.Event()

    def watch() -> None:
        while all(map(is_alive, ancestors)):
            if finished.wait(WATCH_SECONDS):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
    try:
        yield
    finally:
        finished.set()


class _LastingStream(io.TextIOWrapper):
    """Text to a terminal or pipe; discarded once that is closed (a closed window, a killed reader).

    A training must not fail because nobody reads its output: the log file and MLflow have every line.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            self._discard_from_here()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._discard_from_here()

    def _discard_from_here(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def keep_output_open() -> None:
    """Make standard output and error survive a closed terminal, and characters that it cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # A stream that other code put there, such as pytest, stays.
        if stream is getattr(sys, f"__{name}__") and type(stream) is io.TextIOWrapper:
            encoding = stream.encoding
            lasting = _LastingStream(stream.detach(), encoding, errors="replace", line_buffering=True)
            setattr(sys, name, lasting)
            setattr(sys, f"__{name}__", lasting)  # the detached stream can no longer be flushed


def is_alive(process: psutil.Process | int) -> bool:
    """Whether a process, or the one with this process id, runs. A zombie does not: it waits for its parent only."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # or no process id at all
        return False


def _watched_ancestors() -> list[psutil.Process]:
    """The processes that started this one: DVC, with the shell or torchrun in between, and a flow run's process.

    Empty where a person typed the command: with `nohup` it continues after the terminal is closed.
    """
    processes: list[psutil.Process] = []
    if flow := os.environ.get(FLOW_PROCESS):
        try:
            processes.append(psutil.Process(int(flow)))
        except psutil.NoSuchProcess:
            raise TerminatedError from None  # it was killed before this process started
    try:
        parent = psutil.Process().parent()
        while parent is not None and parent.pid > 1:
            shell = parent.name() in SHELLS
            if shell and "-c" not in parent.cmdline():
                break
            processes.append(parent)
            if not shell and "torch.distributed.run" not in parent.cmdline():
                break
            parent = parent.parent()
    except psutil.Error:
        pass
    return processes
