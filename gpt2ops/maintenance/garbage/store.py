"""The local MLflow store: deleted runs, models and artifacts that belong to nothing, and spooled data it has already.

Files that are older than the store are of an earlier one, whose database was moved away and may come back: they stay.
"""

import shutil
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gpt2ops.maintenance import presence
from gpt2ops.maintenance.garbage.files import Garbage, size_of
from gpt2ops.maintenance.local_store import database, open_database
from gpt2ops.maintenance.spool import is_run_id, records_to_send, spooled_journals
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.registry.versions import LOGGED_TAGS, VERSIONS_TAG
from gpt2ops.store.artifact_paths import path_of
from gpt2ops.tracking.journal import journal_entries, run_of


@dataclass(frozen=True)
class InStore(Garbage):
    """A run with the models it logged, or models alone: rows of the store, with their folders."""

    run_id: str | None = None
    model_ids: tuple[str, ...] = ()
    folders: tuple[Path, ...] = field(default=())

    @property
    def size_bytes(self) -> int:
        return sum(size_of(folder) for folder in self.folders if folder.exists())


def deleted_runs() -> list[InStore]:
    """Deleted runs without a registered version: `mlflow gc` would remove the source runs of versions too."""
    if not database().exists():
        return []
    with open_database(database()) as connection:
        rows = connection.execute(
            "SELECT run_uuid, name, artifact_uri FROM runs WHERE lifecycle_stage = 'deleted' "
            "AND run_uuid NOT IN (SELECT run_id FROM model_versions WHERE run_id IS NOT NULL)"
        ).fetchall()
        used = _registered(connection)
        logged = connection.execute("SELECT source_run_id, model_id, artifact_location FROM logged_models").fetchall()
    found = []
    for run_id, name, uri in rows:
        own = [(model, place) for source, model, place in logged if source == run_id and model not in used]
        places = [(uri, run_id), *((place, f"models/{model}") for model, place in own)]
        folders = [folder for place, inside in places if (folder := _own_folder(place, inside))]
        found.append(
            InStore(
                folders[0] if folders else mlruns() / "artifacts" / run_id, "deleted runs",
                f"{name}, deleted in MLflow", run_id, tuple(model for model, _ in own), tuple(folders),
            )
        )  # fmt: skip
    return found


def unregistered_models() -> list[InStore]:
    """Models that a stage `register` logged and made no version of, for it was killed or its check failed.

    Those of a run that a stage is writing into are left out: it may be about to register them.
    """
    if not database().exists():
        return []
    ((mark, value),) = LOGGED_TAGS.items()
    with open_database(database()) as connection:
        rows = connection.execute(
            "SELECT model_id, name, artifact_location, source_run_id FROM logged_models "
            "WHERE model_id IN (SELECT model_id FROM logged_model_tags WHERE tag_key = ? AND tag_value = ?) "
            "AND model_id NOT IN (SELECT model_id FROM logged_model_tags WHERE tag_key = ?) "
            "AND source_run_id IN (SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active')",
            (mark, value, VERSIONS_TAG),
        ).fetchall()
        # Rows of models first, then who is at work, then versions: a version made meanwhile is seen.
        at_work = _runs_at_work()
        used = _registered(connection)
    return [
        InStore(folder, "models", f"{name}, logged but never registered", None, (model,), (folder,))
        for model, name, place, run_id in rows
        if model not in used and run_id not in at_work and (folder := _own_folder(place, f"models/{model}"))
    ]


def _registered(connection: sqlite3.Connection) -> set[str]:
    """The logged models that are a version."""
    return {source.rsplit("/", 1)[-1] for (source,) in connection.execute("SELECT source FROM model_versions")}


def _runs_at_work() -> set[str]:
    """The runs whose journal a stage holds, as it does while it works."""
    entries = [(name, entry) for name, found in journal_entries().items() for entry in found]
    return {run_of(name) for name, entry in entries if entry.suffix == ".lock" and presence.is_held(entry)}


def remove_from_store(items: Iterable[InStore]) -> None:
    """Remove their files, then their rows by the functions that `mlflow gc` uses."""
    items = list(items)
    if not items:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from gpt2ops.store.address import tracking_uri
    from gpt2ops.store.client import connect

    connect()
    store = SqlAlchemyStore(tracking_uri(), (mlruns() / "artifacts").as_uri())
    for item in items:
        for folder in item.folders:
            shutil.rmtree(folder, ignore_errors=True)
        for model in item.model_ids:
            store._hard_delete_logged_model(model)
        if item.run_id:
            store._hard_delete_run(item.run_id)


def _own_folder(place: str | None, inside: str) -> Path | None:
    """The folder `inside` the project's artifacts, where `place` names it; None for any other place.

    A damaged or foreign store may name any folder, another run's too: only the one that MLflow creates here counts.
    """
    path, own = path_of(place or ""), mlruns() / "artifacts" / inside
    try:
        is_own = path is not None and path.resolve() in (own, own / "artifacts") and own.resolve() == own
    except (OSError, RuntimeError, ValueError):  # links in a circle, or no path at all
        return None
    return own if is_own else None


def unknown_artifacts() -> list[Garbage]:
    """Artifact folders whose run or model is not in the store: it was removed, or never completed."""
    return [item for item in _unknown_artifacts() if not _is_of_earlier_store(item.path)]


def spools() -> list[Garbage]:
    """What waits for MLflow and need not: metrics that it has already, and records of runs that it no longer has."""
    return [item for item in _needless_spools() if not _is_of_earlier_store(item.path)]


def notes() -> list[str]:
    """What is left out as that of an earlier store."""
    kept = [item for item in (*_unknown_artifacts(), *_needless_spools()) if _is_of_earlier_store(item.path)]
    if not kept:
        return []
    return [
        f"{len(kept)} files or folders in mlruns/ are older than its database, such as {kept[0].path.name}: they may "
        "be those of one that was moved away, and stay"
    ]


def _is_of_earlier_store(path: Path) -> bool:
    """Whether any of it was there before the database had its first experiment."""
    with open_database(database()) as connection:
        (begun_at,) = connection.execute("SELECT MIN(COALESCE(creation_time, 0)) FROM experiments").fetchone()
    if begun_at is None:
        return True
    return any(file.lstat().st_mtime * 1000 < begun_at for file in (path, *path.rglob("*")))


def _unknown_artifacts() -> list[Garbage]:
    top = mlruns() / "artifacts"
    if not top.is_dir() or not database().exists():
        return []
    # The folders first: a run is in the store before it has a folder.
    folders = [folder for folder in sorted(top.iterdir()) if folder.is_dir() and folder.name != "models"]
    models = [folder for folder in sorted((top / "models").glob("m-*")) if folder.is_dir()]
    with open_database(database()) as connection:
        runs = {run_id for (run_id,) in connection.execute("SELECT run_uuid FROM runs")}
        logged = {model for (model,) in connection.execute("SELECT model_id FROM logged_models")}
        rows = connection.execute(
            "SELECT artifact_uri FROM runs UNION SELECT storage_location FROM model_versions "
            "UNION SELECT source FROM model_versions"
        ).fetchall()
    places = {path for (place,) in rows if (path := path_of(place or ""))}
    used = places.union(*(path.parents for path in places))
    return [
        Garbage(folder, "artifacts", f"of a {kind} that is not in the store")
        for kind, found, known in (("run", folders, runs), ("model", models, logged))
        for folder in found
        if folder.name not in known and folder not in used and (kind == "model" or is_run_id(folder.name))
    ]


def _needless_spools() -> list[Garbage]:
    found = []
    for name, entries in spooled_journals().items():
        if any(presence.is_held(entry) for entry in entries if entry.suffix == ".lock"):
            continue
        waiting = records_to_send(name)
        if waiting is None:
            found += [Garbage(entry, "spools", "for a run that MLflow has no more") for entry in entries]
        elif not waiting:
            metrics = (entry for entry in entries if entry.suffix == ".jsonl")
            found += [Garbage(entry, "spools", "metrics that MLflow has already") for entry in metrics]
    return found
