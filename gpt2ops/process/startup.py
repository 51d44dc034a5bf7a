"""Starting a process that imports large libraries: allocator, Ctrl-C during imports, garbage collection off.

Imports leave no garbage, and importing MLflow and PyTorch takes a quarter longer with the garbage collector on.
"""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from gpt2core.kernels.cores import short_waits

# By default glibc returns every large block to the system, and page faults bring it back at the next step; with these
# settings it keeps its memory, and a training step on a CPU runs about twice as fast.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "68719476736", "MALLOC_TOP_PAD_": "67108864"}
# On a GPU: without it a model that fills the memory fails for the gaps between its tensors.
CUDA_MEMORY = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
INTERRUPTED = 128 + signal.SIGINT


def start_process(*, large_tensors: bool = False) -> None:
    """Call it under `if __name__ == "__main__":` before the large imports, and `end_imports` after them.

    With `large_tensors` the process restarts with an allocator that keeps its memory. From here on Ctrl-C prints one
    line and exits with code 130.
    """
    share_cores()
    if large_tensors:
        keep_freed_memory()
    gc.disable()
    sys.excepthook = _say_interrupted
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the parent process made it ignored
        signal.signal(signal.SIGINT, _leave_imports)


def end_imports() -> None:
    """Undo `start_process`: Ctrl-C raises KeyboardInterrupt, the garbage collector is on. Does nothing without it."""
    if signal.getsignal(signal.SIGINT) is _leave_imports:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not gc.isenabled():
        _collect_from_here()


@contextmanager
def quick_imports() -> Iterator[None]:
    """No garbage collection in this block; objects made in it are never collected later either."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            _collect_from_here()


def share_cores() -> None:
    """Before PyTorch is imported: its threads give a core away soon, unless the user has said how they wait."""
    os.environ.update(short_waits(os.environ))


def keep_freed_memory() -> None:
    """Restart this process with glibc set to keep its memory: glibc reads these settings only at start."""
    if sys.platform == "linux" and not any(key in os.environ for key in KEEP_MEMORY):
        os.execve(sys.executable, sys.orig_argv, {**CUDA_MEMORY, **os.environ, **KEEP_MEMORY})


def _collect_from_here() -> None:
    gc.freeze()
    gc.enable()


def _leave_imports(number: int, frame: FrameType | None) -> None:
    """Exit at once: nothing is open yet, and an importing C extension may replace or swallow a KeyboardInterrupt."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.__excepthook__(kind, error, trace)
