"""`gpt2 gc`: removes what no run, alias or lock file refers to. DVC's cache is left to `dvc gc`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gpt2core.errors import UserError
from gpt2ops.maintenance.garbage import files, store
from gpt2ops.maintenance.garbage.files import Garbage
from gpt2ops.maintenance.presence import stage_at_work
from gpt2ops.pipeline import paths
from gpt2ops.process.git import git
from gpt2ops.process.stage import LOCK
from gpt2ops.store.address import is_local
from gpt2ops.store.errors import one_line

PIPELINE = Path("dvc.yaml")


@dataclass(frozen=True)
class Collected:
    """What may be removed, and a note for each kind that could not be examined."""

    garbage: tuple[Garbage, ...]
    notes: tuple[str, ...]


@contextmanager
def exclusive_access(root: Path) -> Iterator[None]:
    """Hold the stage lock, so that no stage starts. Raises UserError where a stage is running."""
    from filelock import FileLock, Timeout

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
    """Everything in the project that nothing refers to; with `checkpoints_too` also what a run could resume from.

    Raises UserError where `root` is no project: its files are a user's own.
    """
    missing = [name for name in (paths.PARAMS, PIPELINE) if not (root / name).is_file()]
    if missing:
        raise UserError(f"{root} is no project (no {missing[0]}); change to a project's folder.")
    rules = {
        "leftovers": lambda: files.half_written(root),
        "downloads": lambda: files.downloads(root),
        "checkpoints": lambda: files.checkpoints(root, unfinished_too=checkpoints_too),
        "workspaces": lambda: files.flow_runs(root, unfinished_too=checkpoints_too),
    }
    if is_local():
        rules |= {
            "deleted runs": lambda: list(store.deleted_runs()),
            "models": lambda: list(store.unregistered_models()),
            "artifacts": store.unknown_artifacts,
            "spools": store.spools,
        }
    found: list[Garbage] = []
    notes = [] if is_local() else ["the MLflow store is a server's: `mlflow gc` there removes deleted runs"]
    if is_local():
        with suppress(Exception):  # a rule below says that the store is damaged
            notes += store.notes()
    for kind, rule in rules.items():
        try:
            found += rule()
        except Exception as error:  # a damaged store must not prevent the other rules
            notes.append(f"{kind} are skipped: {one_line(error)}")
    behind = {item.path: link for item in found if (link := _link_before(item.path, root))}
    for link in sorted(set(behind.values())):
        name = link.relative_to(root).as_posix()
        notes.append(f"{name} is a link: its target may belong to another project too, and is skipped")
    kept = [item for item in found if item.path not in behind]
    return Collected(tuple(_without_parts(kept)), tuple(notes))


def _link_before(path: Path, root: Path) -> Path | None:
    """The first link on the way from `root` to `path`, which must lie below it."""
    steps = [*reversed(path.relative_to(root).parents), path.relative_to(root)]
    return next((root / step for step in steps if (root / step).is_symlink()), None)


def _without_parts(garbage: list[Garbage]) -> list[Garbage]:
    """Without items inside another item."""
    whole = {item.path for item in garbage}
    return [item for item in garbage if not whole & set(item.path.parents)]


def remove(root: Path, garbage: tuple[Garbage, ...]) -> None:
    """Raises OSError for what cannot be removed; call it within `exclusive_access`."""
    store.remove_from_store(item for item in garbage if isinstance(item, store.InStore))
    for item in garbage:
        if isinstance(item, store.InStore):
            continue
        if item.path.is_dir() and not item.path.is_symlink():
            shutil.rmtree(item.path)
        else:
            item.path.unlink(missing_ok=True)
    if any(item.path.parent == root / paths.WORKSPACES for item in garbage) and (root / ".git").exists():
        # A flow run's workspace is a worktree, which git has a record of.
        git(root, "worktree", "prune")
