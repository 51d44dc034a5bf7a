"""Doctor: locks and who holds them, stages that nobody waits for, folders of flow runs, what was left half-written."""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil

from gpt2ops import paths
from gpt2ops.maintenance import presence as at_work
from gpt2ops.maintenance.doctor.examine import LOOK, OK, WRONG, Finding
from gpt2ops.maintenance.garbage.files import half_written_paths
from gpt2ops.pipeline.lockfile import RWLOCK


def locks(root: Path) -> Iterator[Finding]:
    """Who holds the stage lock, and what DVC's list of who reads and writes says of the dead."""
    holder = at_work.stage_at_work(root)
    text = f"{holder} is writing in this folder" if holder else "no stage is at work here"
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
        alive = {pid: psutil.pid_exists(pid) for pid, _ in holders}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        yield Finding(WRONG, "locks", f"{RWLOCK} is damaged, and DVC refuses to work", "`gpt2 doctor --mend`")
        return
    for pid, command in sorted(holders):
        if not alive[pid]:
            yield Finding(OK, "locks", f"{RWLOCK} names process {pid}, which is gone; DVC removes it by itself")
        elif not _is_dvc(pid):
            # DVC asks only whether the number is in use.
            text = (
                f"{RWLOCK} names process {pid} ({command}), but that number is another program's now: DVC waits for it"
            )
            yield Finding(WRONG, "locks", text, f"rm {RWLOCK}")
        else:
            yield Finding(OK, "locks", f"DVC is at work: process {pid} ({command})")


def _is_dvc(pid: int) -> bool:
    try:
        return any(
            Path(word).stem == "dvc" or word == "gpt2ops.projects.reproduce" for word in psutil.Process(pid).cmdline()
        )
    except psutil.Error:
        return False


def processes(root: Path) -> Iterator[Finding]:
    found = at_work.stage_processes(root)
    for process in found:
        if process.started_by_nobody:
            text = (
                f"the stage {process.stage} (process {process.pid}) works in {process.folder}; what started it is gone"
            )
            yield Finding(LOOK, "processes", text, f"if it is not yours: kill {process.pid} (it saves first)")
        else:
            yield Finding(
                OK, "processes", f"the stage {process.stage} (process {process.pid}) works in {process.folder}"
            )
    left = at_work.left_by_serving(root)
    if left:
        numbers = " ".join(map(str, left))
        yield Finding(LOOK, "processes", f"a killed `make serve` left processes {numbers}", f"kill {numbers}")
    if not found and not left:
        yield Finding(OK, "processes", "none of this project")


def flow_runs(root: Path) -> Iterator[Finding]:
    found = at_work.workspaces(root)
    working = [workspace for workspace in found if workspace.state == "working"]
    if len(working) == len(found):
        yield Finding(OK, "workspaces", f"{len(working)} at work" if working else "none left behind")
    for workspace in found:
        where = f"{paths.WORKSPACES}/{workspace.flow_run_id}"
        if workspace.state == "unfinished":
            remedy = f"go on: prefect flow-run retry {workspace.flow_run_id}; or remove it: gpt2 gc --checkpoints"
            yield Finding(LOOK, "workspaces", f"{where} is of a flow run that did not finish", remedy)
        elif workspace.state != "working":
            yield Finding(LOOK, "workspaces", f"{where} is {workspace.state} and of no use", "gpt2 gc")


def half_written(root: Path) -> Iterator[Finding]:
    found = half_written_paths(root)
    garbage = [leftover.path for leftover in found if not leftover.holds_the_original]
    for leftover in found:
        if leftover.holds_the_original:
            name = leftover.path.name.removeprefix(".").removesuffix(".old")
            text = f"{_short(leftover.path, root)} is the earlier {name}, whose replacement was cut short"
            yield Finding(
                LOOK, "leftovers", text, f"mv {_short(leftover.path, root)} {_short(leftover.path.parent / name, root)}"
            )
    if garbage:
        names = ", ".join(_short(path, root) for path in garbage[:4])
        more = f" and {len(garbage) - 4} more" if len(garbage) > 4 else ""
        yield Finding(LOOK, "leftovers", f"of writes that were cut short: {names}{more}", "gpt2 gc")
    if not found:
        yield Finding(OK, "leftovers", "none")


def _short(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
