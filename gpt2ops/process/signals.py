"""A stage's process among others: its ranks, signals, listeners, the death of its parent."""

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
FLOW_PROCESS = "GPT2_FLOW_PROCESS"  # a variable: the process of the flow run, which DVC outlives


def spawn_ranks(count: int) -> NoReturn:
    """Become `torchrun` with `count` processes on this machine, each of the module that this process runs."""
    module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]  # a stage is started by `python -m`
    arguments = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.flags.safe_path:  # the ranks have no `-P`
        environment["PYTHONSAFEPATH"] = "1"
    os.execve(sys.executable, [sys.executable, *arguments], environment)


@contextmanager
def handling(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """`handler` hears these signals, and afterwards whoever heard them before."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM or the terminal's end, raised where the process stands, so that what is open is closed."""


class Interruption:
    """Hears SIGTERM, SIGHUP and SIGINT and lets the work come to a good place; a second SIGINT ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Self:
        self._handling = handling((*leave_signals(), signal.SIGINT), self._hear)
        self._handling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handling.__exit__(*error)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this step; the checkpoint is being saved ...", file=sys.stderr, flush=True)


def leave_signals() -> list[int]:
    """Signals that ask this process to leave, but those that whoever started it has told it to ignore (`nohup`)."""
    asked = [signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]
    return [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def raise_when_asked_to_leave() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP raise TerminatedError: files and MLflow's run are closed on the way out.

    Gives the signals heard, SIGINT among them: what C code was at work may have made another error of the exception.
    """
    heard: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_IGN)  # once is enough; a second one must not cut the closing short
        raise TerminatedError(number)

    interrupt = [] if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else [signal.SIGINT]
    with handling((*leave_signals(), *interrupt), leave):
        yield heard


@contextmanager
def leave_with_parent() -> Iterator[None]:
    """This process gets SIGTERM as soon as what started it is gone.

    DVC leaves its stages running when it is killed; the next `dvc repro` would start a second writer.
    """
    ancestors, left = _starters(), threading.Event()

    def watch() -> None:
        while all(map(is_alive, ancestors)):
            if left.wait(WATCH_SECONDS):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
    try:
        yield
    finally:
        left.set()


class _Lasting(io.TextIOWrapper):
    """Text to a terminal or pipe; when that is gone (a closed window, a killed reader) what is said goes nowhere.

    A training must not end because nobody listens: its log file and MLflow have every line.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            self._listen_no_more()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._listen_no_more()

    def _listen_no_more(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)


def outlive_listeners() -> None:
    """Standard output and error that neither a closed terminal nor a character it cannot show brings down."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Whoever has put a stream of his own there, such as a test, keeps it.
        if stream is getattr(sys, f"__{name}__") and type(stream) is io.TextIOWrapper:
            encoding = stream.encoding
            lasting = _Lasting(stream.detach(), encoding, errors="replace", line_buffering=True)
            setattr(sys, name, lasting)
            setattr(sys, f"__{name}__", lasting)  # the detached one can no longer be flushed


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a dead one that nobody has waited for yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _starters() -> list[psutil.Process]:
    """What started this process: DVC, behind the shell it runs its stages by and behind torchrun, and a flow's process.

    None where a person typed the command: whoever closes the terminal after `nohup` wants it to go on.
    """
    processes: list[psutil.Process] = []
    if flow := os.environ.get(FLOW_PROCESS):
        try:
            processes.append(psutil.Process(int(flow)))
        except psutil.NoSuchProcess:
            raise TerminatedError from None  # it was killed before this began
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
