"""The local MLflow store: deleted runs, artifacts of unknown runs, and spooled data that it has or does not need."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gpt2ops.maintenance import presence
from gpt2ops.maintenance.garbage.files import Garbage, size_of
from gpt2ops.maintenance.local_store import database, open_database
from gpt2ops.maintenance.spool import is_run_id, records_to_send, spooled_journals
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.store.artifact_paths import path_of


@dataclass(frozen=True)
class DeletedRun(Garbage):
    """A run that was deleted in MLflow and has no registered version, with the models it logged."""

    run_id: str = ""
    model_ids: tuple[str, ...] = ()
    folders: tuple[Path, ...] = field(default=())

    @property
    def size_bytes(self) -> int:
        return sum(size_of(folder) for folder in self.folders if folder.exists())


def deleted_runs() -> list[DeletedRun]:
    """Deleted runs without a registered version: `mlflow gc` would remove the source runs of versions too."""
    if not database().exists():
        return []
    with open_database(database()) as connection:
        rows = connection.execute(
            "SELECT run_uuid, name, artifact_uri FROM runs WHERE lifecycle_stage = 'deleted' "
            "AND run_uuid NOT IN (SELECT run_id FROM model_versions WHERE run_id IS NOT NULL)"
        ).fetchall()
        used = {source.rsplit("/", 1)[-1] for (source,) in connection.execute("SELECT source FROM model_versions")}
        logged = connection.execute("SELECT source_run_id, model_id, artifact_location FROM logged_models").fetchall()
    found = []
    for run_id, name, uri in rows:
        own = [(model, place) for source, model, place in logged if source == run_id and model not in used]
        places = [(uri, run_id), *((place, f"models/{model}") for model, place in own)]
        folders = [folder for place, inside in places if (folder := _own_folder(place, inside))]
        found.append(
            DeletedRun(
                folders[0] if folders else mlruns() / "artifacts" / run_id, "deleted runs",
                f"{name}, deleted in MLflow", run_id, tuple(model for model, _ in own), tuple(folders),
            )
        )  # fmt: skip
    return found


def remove_deleted_runs(runs: Iterable[DeletedRun]) -> None:
    """Remove their files, then their rows by the functions that `mlflow gc` uses."""
    runs = list(runs)
    if not runs:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from gpt2ops.store.address import tracking_uri
    from gpt2ops.store.client import connect

    connect()
    store = SqlAlchemyStore(tracking_uri(), (mlruns() / "artifacts").as_uri())
    for run in runs:
        for folder in run.folders:
            shutil.rmtree(folder, ignore_errors=True)
        for model in run.model_ids:
            store._hard_delete_logged_model(model)
        store._hard_delete_run(run.run_id)


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


def spools() -> list[Garbage]:
    """What waits for MLflow and need not: metrics that it has already, and records of runs that it no longer has."""
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
