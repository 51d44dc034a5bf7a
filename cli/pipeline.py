"""Running a project's stages, as `gpt2 finetune` and `gpt2 rerun` do: a child process that leaves when asked to."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from tasks.project import stage_environment

INTERRUPTED = 130


class InterruptedPipelineError(Exception):
    """The stages were asked to leave, and have left."""


class PipelineError(Exception):
    """A stage failed, and has said why."""


def run_stages(
    folder: Path, *, store: Path, output_to_stderr: bool, stages: Sequence[str] = (), **environment: str
) -> None:
    """The stages of the project in `folder`, or by force those named, tracked in the store of the folder `store`.

    Ctrl-C and SIGTERM reach the running stage; a training saves its checkpoint. Raises InterruptedPipelineError then,
    and PipelineError for a stage that failed.
    """
    command = [sys.executable, "-m", "tasks.reproduce", *(["--force", *stages] if stages else [])]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=stage_environment(store, **environment),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if output_to_stderr else None,
        # A terminal's Ctrl-C is for us: it would reach the stage twice otherwise.
        start_new_session=True,
    )
    with _Forwarding(process) as forwarding:
        code = process.wait()
    if forwarding.heard or code == INTERRUPTED:
        raise InterruptedPipelineError
    if code:
        raise PipelineError


class _Forwarding:
    """Hands Ctrl-C, SIGTERM and the terminal's end on to a process, instead of ending this one."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.heard = False
        self._signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._hear) for number in self._signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        if os.name == "posix":
            self._process.send_signal(signal.SIGTERM)
