"""The pipeline's stages. Ctrl-C while one still imports its libraries, before `run_stage`, is one line as well."""

import sys
from types import TracebackType


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        _before(kind, error, trace)


_before = sys.excepthook
sys.excepthook = _say_interrupted
