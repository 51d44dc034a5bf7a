"""Running a project's stages, as `gpt2 finetune` and `gpt2 rerun` do: a child process that leaves when asked to."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from gpt2ops.process.signals import handling, leave_signals
from gpt2ops.projects.project import stage_environment

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
    arguments = ["-P", "-m", "gpt2ops.projects.reproduce"]
    _run(arguments, folder, stage_environment(store, **environment), output_to_stderr, signal.SIGTERM)


def run_stage(folder: Path, stage: str, *, store: Path, output_to_stderr: bool) -> None:
    """One stage of the project in `folder`, without DVC and its cache; by the code in `folder` where it brings its own.

    Raises as `run_stages`.
    """
    arguments = ["-m", f"tasks.{stage}"] if (folder / "gpt2ops").is_dir() else ["-P", "-m", f"gpt2ops.stages.{stage}"]
    _run(arguments, folder, stage_environment(store), output_to_stderr, signal.SIGINT)


def _run(
    arguments: list[str], folder: Path, environment: dict[str, str], output_to_stderr: bool, request: signal.Signals
) -> None:
    """Python with `arguments`; Ctrl-C and SIGTERM are passed on to it as the signal `request`."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if output_to_stderr else None,
        # A terminal's Ctrl-C is for us: it would reach the stage twice otherwise.
        start_new_session=True,
    )
    heard = False

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        if os.name == "posix":
            process.send_signal(request)

    with handling((*leave_signals(), signal.SIGINT), hand_on):
        code = process.wait()
    if heard or code == INTERRUPTED:
        raise InterruptedPipelineError
    if code:
        raise PipelineError
