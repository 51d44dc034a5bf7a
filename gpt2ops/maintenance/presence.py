"""Who works in a project right now: the holder of its stage lock, its stages' processes, its flow runs' folders."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpt2core.storage.files import read_json
from gpt2ops import paths
from gpt2ops.process.signals import is_alive
from gpt2ops.process.stage import LOCK
from gpt2ops.tracking.store import stored_run_id

FRESH_SECONDS = 600.0  # a folder touched since may still be in the making
_STAGE = re.compile(r"(?:tasks|gpt2ops\.stages)\.(\w+)")  # a module: of a checkout, of a project elsewhere
_SERVED_BY = "GPT2_SERVED_BY"  # in the environment of what `flows.serve` starts: "PID FOLDER"


def stage_at_work(folder: Path) -> str | None:
    """The stage that holds the folder's lock, as `the stage finetune (process 12)`; None where none works.

    Raises OSError where the lock cannot be looked at.
    """
    file = folder / LOCK
    if not is_held(file):
        return None
    with suppress(OSError):
        return file.with_suffix(".holder").read_text(encoding="utf-8") or "a stage"
    return "a stage"


def is_held(file: Path) -> bool:
    """Whether a process holds the lock `file`. Raises OSError where that cannot be looked at."""
    from filelock import FileLock, Timeout

    if not file.is_file():
        return False
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


@dataclass(frozen=True)
class StageProcess:
    pid: int
    stage: str
    folder: Path
    started_by_nobody: bool  # what started it is gone


def stage_processes(root: Path) -> list[StageProcess]:
    """Stages that run in the project's folder, or in one below it such as a flow run's."""
    found = []
    for process, command in _commands():
        stage = next(filter(None, map(_STAGE.fullmatch, command)), None)
        if stage is None or "-m" not in command or "torch.distributed.run" in command:
            continue
        with suppress(psutil.Error, OSError):
            folder = Path(process.cwd())
            if folder.is_relative_to(root) and is_alive(process):
                parent = process.parent()
                alone = parent is None or parent.pid == 1
                found.append(StageProcess(process.pid, stage[1], folder, alone))
    return found


def left_by_serving(root: Path) -> list[int]:
    """Processes that a killed `flows.serve` of this folder left behind."""
    found = []
    for process, _ in _commands():
        with suppress(psutil.Error, OSError, ValueError):
            pid, _, folder = process.environ().get(_SERVED_BY, "").partition(" ")
            if folder == str(root) and not psutil.pid_exists(int(pid)) and is_alive(process):
                found.append(process.pid)
    return found


def _commands() -> Iterator[tuple[psutil.Process, list[str]]]:
    psutil.process_iter.cache_clear()  # it takes a number that is in use again for the process of before
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid():
            yield process, process.info["cmdline"] or []


@dataclass(frozen=True)
class Workspace:
    """A flow run's own folder. One that failed is kept: `prefect flow-run retry` goes on in it."""

    folder: Path
    state: str  # working | finished | unfinished | half made

    @property
    def flow_run_id(self) -> str:
        return self.folder.name


def workspaces(root: Path) -> list[Workspace]:
    """The folders of flow runs that are still there, oldest first."""
    top = root / paths.WORKSPACES
    folders = [folder for folder in top.iterdir() if folder.is_dir()] if top.is_dir() else []
    working = {process.folder for process in stage_processes(root)}
    return [
        Workspace(folder, _state(folder, working)) for folder in sorted(folders, key=lambda path: path.stat().st_mtime)
    ]


def _state(folder: Path, working: set[Path]) -> str:
    if folder in working or stage_at_work(folder):
        return "working"
    if not (folder / ".dvc" / "config.local").is_file():  # what is written last when it is made
        return "working" if is_fresh(folder) else "half made"
    page, registered = folder / paths.REPORT_PDF, folder / paths.REGISTERED
    try:
        same = read_json(registered)["run_id"] == stored_run_id(read_json(folder / paths.RUN)["run_id"])
        done = same and page.stat().st_mtime >= registered.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        done = False
    # Between two stages, and before its flow removes it, nobody holds its lock.
    if done:
        return "working" if is_fresh(page) else "finished"
    return "unfinished"


def is_fresh(path: Path) -> bool:
    """Whether it was written in the last minutes."""
    return time.time() - path.stat().st_mtime < FRESH_SECONDS
