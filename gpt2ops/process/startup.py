"""Starting a process that imports large libraries: its allocator, Ctrl-C meanwhile, and no search for garbage.

Imports leave no garbage, and MLflow and PyTorch take a quarter longer where it is searched for.
"""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

# glibc gives every large block back to the system and faults it in again at the next step; told to keep its memory,
# a training step on a CPU runs about twice as fast.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "68719476736", "MALLOC_TOP_PAD_": "67108864"}
INTERRUPTED = 128 + signal.SIGINT


def start_process(*, large_tensors: bool = False) -> None:
    """Call it under `if __name__ == "__main__":` before the large imports, and `end_imports` after them.

    With `large_tensors` the process starts anew with an allocator that keeps its memory. Ctrl-C is one line and exit
    code 130 from here on.
    """
    if large_tensors:
        keep_freed_memory()
    gc.disable()
    sys.excepthook = _say_interrupted
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the starter has it ignored
        signal.signal(signal.SIGINT, _leave_imports)


def end_imports() -> None:
    """Ctrl-C raises KeyboardInterrupt again, and garbage is searched for; nothing without `start_process` before."""
    if signal.getsignal(signal.SIGINT) is _leave_imports:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not gc.isenabled():
        _search_from_here()


@contextmanager
def quick_imports() -> Iterator[None]:
    """No search for garbage within; nor later among what was made within, which stays to the end of the process."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            _search_from_here()


def keep_freed_memory() -> None:
    """Start this process anew with glibc told to keep its memory: it reads its settings only at start."""
    if sys.platform == "linux" and not any(key in os.environ for key in KEEP_MEMORY):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_MEMORY})


def _search_from_here() -> None:
    gc.freeze()
    gc.enable()


def _leave_imports(number: int, frame: FrameType | None) -> None:
    """Nothing is open yet, and C code that imports a module makes another error of a KeyboardInterrupt, or none."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.__excepthook__(kind, error, trace)
