"""`gpt2 gc`: what no run, alias or lock file refers to. DVC's cache is `dvc gc`'s; what is being written now stays."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2core.errors import UserError
from gpt2ops import paths
from gpt2ops.maintenance.garbage import files as garbage_files
from gpt2ops.maintenance.garbage import store as garbage_store
from gpt2ops.maintenance.garbage.files import Garbage
from gpt2ops.process.stage import LOCK
from gpt2ops.tracking.store import is_local, one_line

PIPELINE = Path("dvc.yaml")


@dataclass(frozen=True)
class Collected:
    """What may go, and a line for each kind that could not be looked at."""

    garbage: tuple[Garbage, ...]
    notes: tuple[str, ...]


@contextmanager
def nobody_writes(root: Path) -> Iterator[None]:
    """Hold the stage lock, so that no stage starts meanwhile. Raises UserError where one is at work."""
    from filelock import FileLock, Timeout

    from gpt2ops.maintenance.presence import stage_at_work

    if holder := stage_at_work(root):
        raise UserError(f"{holder} is writing in this folder; wait for it or stop it, and run again.")
    if not (root / LOCK.parent).is_dir():
        yield
        return
    try:
        with FileLock(root / LOCK).acquire(timeout=1):
            yield
    except Timeout:
        raise UserError("a stage is writing in this folder; wait for it or stop it, and run again.") from None


def collect(root: Path, *, checkpoints_too: bool = False) -> Collected:
    """Everything in the project that nothing refers to. `checkpoints_too`: also what a run could go on from.

    Raises UserError where there is no project: what lies there is somebody's own.
    """
    missing = [name for name in (paths.PARAMS, PIPELINE) if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"{root} is no project (no {missing[0]}); go to the folder of one, and nothing else is touched."
        )
    rules = {
        "leftovers": lambda: garbage_files.half_written(root),
        "checkpoints": lambda: garbage_files.checkpoints(root, unfinished_too=checkpoints_too),
        "workspaces": lambda: garbage_files.flow_runs(root, unfinished_too=checkpoints_too),
    }
    if is_local():
        rules |= {
            "deleted runs": lambda: list(garbage_store.deleted_runs()),
            "artifacts": garbage_store.unknown_artifacts,
            "spools": garbage_store.spools,
        }
    found: list[Garbage] = []
    notes = [] if is_local() else ["the MLflow store is a server's: its own `mlflow gc` removes deleted runs"]
    for kind, rule in rules.items():
        try:
            found += rule()
        except Exception as error:  # a sick store must not keep the rest from being cleaned
            notes.append(f"{kind} are left alone: {one_line(error)}")
    behind = {item.path: link for item in found if (link := _link_before(item.path, root))}
    for link in sorted(set(behind.values())):
        name = link.relative_to(root).as_posix()
        notes.append(f"{name} is a link: what is behind it may be another project's too, and is left alone")
    kept = [item for item in found if item.path not in behind]
    return Collected(tuple(_without_parts(kept)), tuple(notes))


def _link_before(path: Path, root: Path) -> Path | None:
    """The first link on the way from `root` to `path`, which must lie below it."""
    steps = [*reversed(path.relative_to(root).parents), path.relative_to(root)]
    return next((root / step for step in steps if (root / step).is_symlink()), None)


def _without_parts(garbage: list[Garbage]) -> list[Garbage]:
    """Without what lies in something else that goes."""
    whole = {item.path for item in garbage}
    return [item for item in garbage if not whole & set(item.path.parents)]


def remove(root: Path, garbage: tuple[Garbage, ...]) -> None:
    """Raises OSError for what cannot be removed; `nobody_writes` must be open."""
    garbage_store.remove_deleted_runs([item for item in garbage if isinstance(item, garbage_store.DeletedRun)])
    for item in garbage:
        if isinstance(item, garbage_store.DeletedRun):
            continue
        if item.path.is_dir() and not item.path.is_symlink():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
    if any(item.path.parent == root / paths.WORKSPACES for item in garbage) and (root / ".git").exists():
        # A flow run's folder is a worktree, which git remembers.
        subprocess.run(["git", "worktree", "prune"], cwd=root, capture_output=True, check=False)
