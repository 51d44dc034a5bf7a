"""Running a project's stages, as `gpt2 finetune` and `gpt2 rerun` do: a child process that leaves when asked to."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from tasks.project import stage_environment

INTERRUPTED = 130


class InterruptedPipelineError(Exception):
    """The stages were asked to leave, and have left."""


class PipelineError(Exception):
    """A stage failed, and has said why."""


def run_stages(folder: Path, *, store: Path, output_to_stderr: bool, **environment: str) -> None:
    """All stages of the project in `folder`, by DVC, tracked in the store of the folder `store`.

    Ctrl-C and SIGTERM reach the running stage; a training saves its checkpoint. Raises InterruptedPipelineError then,
    and PipelineError for a stage that failed.
    """
    _run("tasks.reproduce", folder, stage_environment(store, **environment), output_to_stderr, signal.SIGTERM)


def run_stage(folder: Path, stage: str, *, store: Path, output_to_stderr: bool) -> None:
    """One stage of the project in `folder`, without DVC and what that knows of earlier runs. Raises as `run_stages`."""
    _run(f"tasks.{stage}", folder, stage_environment(store), output_to_stderr, signal.SIGINT)


def _run(
    module: str, folder: Path, environment: dict[str, str], output_to_stderr: bool, request: signal.Signals
) -> None:
    """`python -m MODULE`, which leaves where it is sent `request`."""
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if output_to_stderr else None,
        # A terminal's Ctrl-C is for us: it would reach the stage twice otherwise.
        start_new_session=True,
    )
    with _Forwarding(process, request) as forwarding:
        code = process.wait()
    if forwarding.heard or code == INTERRUPTED:
        raise InterruptedPipelineError
    if code:
        raise PipelineError


class _Forwarding:
    """Hands Ctrl-C, SIGTERM and the terminal's end on to a process, instead of ending this one."""

    def __init__(self, process: "subprocess.Popen[bytes]", request: signal.Signals) -> None:
        self._process = process
        self._request = request
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
            self._process.send_signal(self._request)
