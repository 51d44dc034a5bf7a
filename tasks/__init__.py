"""The pipeline's stages. Ctrl-C while one still imports its libraries, before `run_stage`, is one line as well."""

import os
import signal
import sys
from types import FrameType, TracebackType

INTERRUPTED = "interrupted"


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
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # `python -m tasks.STAGE`
    signal.signal(signal.SIGINT, _leave_imports)
