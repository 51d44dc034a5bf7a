"""The pipeline's stages, and what has to be done before one imports its libraries.

Ctrl-C in that time, before `run_stage`, is one line as well; and who needs another allocator starts anew, which is
cheap only here.
"""

import gc
import os
import signal
import sys
from types import FrameType, TracebackType

from tasks.allocator import keep_freed_memory

INTERRUPTED = "interrupted"
WITH_LARGE_TENSORS = ("finetune", "evaluate")


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr)
    else:
        _before(kind, error, trace)


def _leave_imports(number: int, frame: FrameType | None) -> None:
    """Nothing is open yet, and C code that imports a module makes another error of a KeyboardInterrupt, or none."""
    inner = frame
    while inner is not None:
        if inner.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, f"{INTERRUPTED}\n".encode())
            os._exit(128 + number)
        inner = inner.f_back
    signal.default_int_handler(number, frame)


_before = sys.excepthook
sys.excepthook = _say_interrupted
_asked = [argument.removeprefix("-m") for argument in sys.orig_argv]
if sys.argv[0] == "-m" and any(name.startswith("tasks.") for name in _asked):  # `python -m tasks.STAGE`: it comes next
    if any(name.removeprefix("tasks.") in WITH_LARGE_TENSORS for name in _asked):
        keep_freed_memory()
    gc.disable()  # `run_stage` enables it: imports leave no garbage to search for
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave_imports)
