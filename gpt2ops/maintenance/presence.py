"""What is running in a project: the holder of its stage lock, its stages' processes, its flow runs' workspaces."""

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpt2core.storage.files import read_json
from gpt2ops.pipeline import paths
from gpt2ops.process.served import other_processes
from gpt2ops.process.signals import is_alive
from gpt2ops.process.stage import LOCK
from gpt2ops.tracking.restored_runs import stored_run_id

RECENT_SECONDS = 600.0  # a younger file or folder may still be in use
_STAGE = re.compile(r"(?:tasks|gpt2ops\.stages)\.(\w+)")  # a module: of a checkout, of a project elsewhere


def stage_at_work(folder: Path) -> str | None:
    """The holder of the folder's stage lock, such as `the stage finetune (process 12)`; None where it is free.

    Raises OSError where the lock file cannot be opened.
    """
    file = folder / LOCK
    if not is_held(file):
        return None
    with suppress(OSError):
        return file.with_suffix(".holder").read_text(encoding="utf-8") or "a stage"
    return "a stage"


def is_held(file: Path) -> bool:
    """Whether a process holds the lock `file`. Raises OSError where it cannot be opened."""
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
    is_orphan: bool  # its parent process has ended


def stage_processes(root: Path) -> list[StageProcess]:
    """Running stages whose working directory is `root` or below it, such as a flow run's workspace."""
    found = []
    for process in other_processes():
        with suppress(psutil.Error, OSError):
            command = process.cmdline()
            stage = next(filter(None, map(_STAGE.fullmatch, command)), None)
            if stage is None or "-m" not in command or "torch.distributed.run" in command:
                continue
            folder = Path(process.cwd())
            if folder.is_relative_to(root) and is_alive(process):
                parent = process.parent()
                is_orphan = parent is None or parent.pid == 1
                found.append(StageProcess(process.pid, stage[1], folder, is_orphan))
    return found


@dataclass(frozen=True)
class Workspace:
    """A flow run's folder. It is kept when the run fails: `prefect flow-run retry` resumes in it."""

    folder: Path
    state: str  # working | finished | unfinished | incomplete

    @property
    def flow_run_id(self) -> str:
        return self.folder.name


def workspaces(root: Path) -> list[Workspace]:
    """The flow runs' folders, oldest first."""
    top = root / paths.WORKSPACES
    folders = [folder for folder in top.iterdir() if folder.is_dir()] if top.is_dir() else []
    working = {process.folder for process in stage_processes(root)}
    return [
        Workspace(folder, _state(folder, working)) for folder in sorted(folders, key=lambda path: path.stat().st_mtime)
    ]


def _state(folder: Path, working: set[Path]) -> str:
    if folder in working or stage_at_work(folder):
        return "working"
    if not (folder / ".dvc" / "config.local").is_file():  # the last file that creating a workspace writes
        return "working" if is_recent(folder) else "incomplete"
    page, registered = folder / paths.REPORT_PDF, folder / paths.REGISTERED
    try:
        same = read_json(registered)["run_id"] == stored_run_id(read_json(folder / paths.RUN)["run_id"])
        done = same and page.stat().st_mtime >= registered.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        done = False
    # Its lock is free between two stages, and before the flow removes the folder.
    if done:
        return "working" if is_recent(page) else "finished"
    return "unfinished"


def is_recent(path: Path) -> bool:
    """Whether it was modified in the last RECENT_SECONDS."""
    return time.time() - path.stat().st_mtime < RECENT_SECONDS
