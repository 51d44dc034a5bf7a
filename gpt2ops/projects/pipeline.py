"""Runs a project's stages in a child process, which Ctrl-C and SIGTERM reach: for `gpt2 finetune` and `gpt2 rerun`."""

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
    """Ctrl-C or SIGTERM ended the stages."""


class PipelineError(Exception):
    """A stage failed; its own message says why."""


def run_stages(folder: Path, *, store: Path, output_to_stderr: bool, **environment: str) -> None:
    """Run all stages of the project in `folder` with DVC, tracked in the MLflow store of the folder `store`.

    Ctrl-C and SIGTERM reach the running stage; a training saves its checkpoint. Raises InterruptedPipelineError then,
    and PipelineError for a stage that failed.
    """
    arguments = ["-P", "-m", "gpt2ops.projects.reproduce"]
    _run(arguments, folder, stage_environment(store, **environment), output_to_stderr, signal.SIGTERM)


def run_stage(folder: Path, stage: str, *, store: Path, output_to_stderr: bool) -> None:
    """Run one stage of the project in `folder` without DVC and its cache. Raises as `run_stages`.

    It runs the code in `folder` if there is any, as `gpt2 rerun` puts it there, else the installed code.
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
        # Otherwise a terminal's Ctrl-C would reach the stage twice: from the terminal, and from here.
        start_new_session=True,
    )
    interrupted = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        if os.name == "posix":
            process.send_signal(request)

    with handling((*leave_signals(), signal.SIGINT), pass_on):
        code = process.wait()
    if interrupted or code == INTERRUPTED:
        raise InterruptedPipelineError
    if code:
        raise PipelineError
