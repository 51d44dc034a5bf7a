"""The training process among others: its memory allocator, its ranks, signals, and the death of its parent."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import NoReturn, Self

import psutil

# glibc gives every large block back to the system and faults it in again at the next step; told to keep its memory,
# a training step on a CPU runs about twice as fast.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "68719476736", "MALLOC_TOP_PAD_": "67108864"}
SHELLS = {"sh", "bash", "dash", "zsh"}
WATCH_SECONDS = 1.0


def keep_freed_memory() -> None:
    """Start this process anew with glibc told to keep its memory: it reads its settings only at start."""
    if sys.platform == "linux" and not any(key in os.environ for key in KEEP_MEMORY):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_MEMORY})


def spawn_ranks(count: int, module: str) -> NoReturn:
    """Become `torchrun` with `count` processes of `module` on this machine."""
    arguments = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", module]
    os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, "OMP_NUM_THREADS": "1"})


class Interruption:
    """Hears SIGTERM, SIGINT and the death of the process that started this one; a second SIGINT ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._left = threading.Event()
        self._ancestors = _starters()

    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}
        threading.Thread(target=self._watch_parent, name="watch-parent", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print("\nstopping after this step; the checkpoint is being saved ...", file=sys.stderr, flush=True)

    def _watch_parent(self) -> None:
        # DVC leaves its stages running when it is killed; the next `dvc repro` would start a second writer.
        while not self._left.wait(WATCH_SECONDS):
            if self.signal is None and not all(process.is_running() for process in self._ancestors):
                self.signal = signal.SIGTERM


def _starters() -> list[psutil.Process]:
    """The parent and, where that is a shell or torchrun, what started it."""
    processes: list[psutil.Process] = []
    try:
        parent = psutil.Process().parent()
        while parent is not None and parent.pid > 1:
            processes.append(parent)
            if parent.name() not in SHELLS and "torch.distributed.run" not in parent.cmdline():
                break
            parent = parent.parent()
    except psutil.Error:
        pass
    return processes
