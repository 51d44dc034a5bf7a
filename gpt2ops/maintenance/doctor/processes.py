"""Checks of locks, stage processes, flow runs' workspaces, and files of interrupted writes."""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil

from gpt2ops.maintenance import presence
from gpt2ops.maintenance.doctor.finding import LOOK, OK, WRONG, Finding
from gpt2ops.maintenance.garbage.files import half_written_paths
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.lockfile import RWLOCK
from gpt2ops.process.served import left_by_serving
from gpt2ops.process.signals import is_alive

_MAX_PROCESS_ID = 2**31 - 1  # of C's pid_t


def locks(root: Path) -> Iterator[Finding]:
    """The holder of the stage lock, and the processes in DVC's rwlock, live or dead."""
    holder = presence.stage_at_work(root)
    text = f"{holder} is writing in this folder" if holder else "no stage is running here"
    yield Finding(OK, "locks", text)
    yield from _dvc_locks(root / RWLOCK)


def _dvc_locks(file: Path) -> Iterator[Finding]:
    if not file.exists():
        return
    try:
        listed = json.loads(file.read_text(encoding="utf-8") or "{}")
        holders = {
            (int(info["pid"]), str(info["cmd"]))
            for kind in ("read", "write")
            for infos in listed.get(kind, {}).values()
            for info in (infos if isinstance(infos, list) else [infos])
        }
        if any(not 0 < pid <= _MAX_PROCESS_ID for pid, _ in holders):
            raise ValueError(holders)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        yield Finding(WRONG, "locks", f"{RWLOCK} is damaged, and DVC refuses to run", "`gpt2 doctor --mend`")
        return
    for pid, command in sorted(holders):
        if not is_alive(pid):
            yield Finding(OK, "locks", f"{RWLOCK} names process {pid}, which has ended; DVC removes the entry itself")
        elif not _is_dvc(pid):
            # DVC checks only whether the process id is in use.
            text = f"{RWLOCK} names process {pid} ({command}), but another program has that id now: DVC waits for it"
            yield Finding(WRONG, "locks", text, f"rm {RWLOCK}")
        else:
            yield Finding(OK, "locks", f"DVC is running: process {pid} ({command})")


def _is_dvc(pid: int) -> bool:
    try:
        return any(
            Path(word).stem == "dvc" or word == "gpt2ops.projects.reproduce" for word in psutil.Process(pid).cmdline()
        )
    except psutil.Error:
        return False


def processes(root: Path) -> Iterator[Finding]:
    found = presence.stage_processes(root)
    for process in found:
        if process.is_orphan:
            text = f"the stage {process.stage} (process {process.pid}) runs in {process.folder}; its parent has ended"
            yield Finding(LOOK, "processes", text, f"if it should not run: kill {process.pid} (it saves first)")
        else:
            yield Finding(
                OK, "processes", f"the stage {process.stage} (process {process.pid}) runs in {process.folder}"
            )
    left = [process.pid for process in left_by_serving(root)]
    if left:
        numbers = " ".join(map(str, left))
        yield Finding(LOOK, "processes", f"a killed `make serve` left processes {numbers}", f"kill {numbers}")
    if not found and not left:
        yield Finding(OK, "processes", "no process of this project")


def flow_runs(root: Path) -> Iterator[Finding]:
    found = presence.workspaces(root)
    working = [workspace for workspace in found if workspace.state == "working"]
    if len(working) == len(found):
        yield Finding(OK, "workspaces", f"{len(working)} in use" if working else "none")
    for workspace in found:
        where = f"{paths.WORKSPACES}/{workspace.flow_run_id}"
        if workspace.state == "unfinished":
            remedy = f"resume: prefect flow-run retry {workspace.flow_run_id}; or remove it: gpt2 gc --checkpoints"
            yield Finding(LOOK, "workspaces", f"{where} belongs to a flow run that did not finish", remedy)
        elif workspace.state != "working":
            yield Finding(LOOK, "workspaces", f"{where} is {workspace.state} and no longer needed", "gpt2 gc")


def half_written(root: Path) -> Iterator[Finding]:
    found = half_written_paths(root)
    garbage = [leftover.path for leftover in found if not leftover.holds_the_original]
    for leftover in found:
        if leftover.holds_the_original:
            name = leftover.path.name.removeprefix(".").removesuffix(".old")
            text = f"{_short(leftover.path, root)} is the earlier {name}; writing its replacement was interrupted"
            yield Finding(
                LOOK, "leftovers", text, f"mv {_short(leftover.path, root)} {_short(leftover.path.parent / name, root)}"
            )
    if garbage:
        names = ", ".join(_short(path, root) for path in garbage[:4])
        more = f" and {len(garbage) - 4} more" if len(garbage) > 4 else ""
        yield Finding(LOOK, "leftovers", f"of interrupted writes: {names}{more}", "gpt2 gc")
    if not found:
        yield Finding(OK, "leftovers", "none")


def _short(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
