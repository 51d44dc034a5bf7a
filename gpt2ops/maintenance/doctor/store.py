"""Checks of the MLflow store, abandoned runs and registered models. They only read; `close_abandoned` changes.

The local store is read without MLflow, whose import takes a second, and which would create or migrate the store.
"""

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2ops.maintenance import presence
from gpt2ops.maintenance.doctor.finding import LOOK, OK, WRONG, Finding
from gpt2ops.maintenance.local_store import database, open_database
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.process.redact import redact
from gpt2ops.store.address import is_local, sqlite_file, tracking_uri
from gpt2ops.store.artifact_paths import misplaced, old_folder, path_of, store_of
from gpt2ops.store.errors import one_line

SERVER_SECONDS = 2.0
CHECK_SECONDS = 1.0  # for SQLite's quick_check, which reads the whole file


def store(root: Path) -> Iterator[Finding]:
    """Whether the store answers and is undamaged. Raises UserError where no store can be in this folder."""
    if not is_local():
        yield _remote_store()
        return
    tracking_uri()  # it raises where MLflow cannot keep a store in this folder
    if not database().exists():
        yield Finding(OK, "mlflow", f"no store yet in {mlruns()}: the first run creates it")
        return
    try:
        with open_database(database()) as connection:
            problem = integrity_problem(connection, CHECK_SECONDS)
            count = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
            changes = misplaced(connection, mlruns())
    except sqlite3.Error as error:
        remedy = "restore it from a copy, or move it away: the next run creates a new store"
        yield Finding(WRONG, "mlflow", f"{database()} cannot be read ({one_line(error)})", remedy)
        return
    if problem:
        remedy = f"sqlite3 {database()} .recover > recovered.sql; see docs/maintenance.md"
        yield Finding(WRONG, "mlflow", f"{database()} is damaged: {problem}", remedy)
    else:
        yield Finding(OK, "mlflow", f"{database()}, runs: {count}")
    if changes:
        folders = ", ".join(sorted({old_folder(store_of(change.old)) for change in changes}))
        text = f"{len(changes)} paths in the store point to {folders}: the folder was moved or copied"
        yield Finding(WRONG, "mlflow", text, "gpt2 relocate")


def integrity_problem(connection: sqlite3.Connection, seconds: float) -> str | None:
    """The first problem that SQLite's quick_check finds in `seconds`; None where it finds none."""
    deadline = time.monotonic() + seconds
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
    try:
        found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        found = "ok"
    finally:
        connection.set_progress_handler(None, 0)
    return None if found == "ok" else " ".join(found.split())


def _remote_store() -> Finding:
    uri = redact(tracking_uri())
    if file := sqlite_file():
        return _other_file(file)
    if not tracking_uri().startswith(("http://", "https://")):
        return Finding(OK, "mlflow", f"{uri}: a store that only MLflow itself can read")
    remedy = "start its server, or unset MLFLOW_TRACKING_URI to use mlruns/"
    try:
        _ask("experiments/search", {"max_results": 1})
    except (OSError, ValueError) as error:
        return Finding(WRONG, "mlflow", f"no answer from {uri} ({one_line(error)})", remedy)
    return Finding(OK, "mlflow", f"answers at {uri}")


def _other_file(file: Path) -> Finding:
    """A SQLite store that MLFLOW_TRACKING_URI names."""
    if not file.is_file():
        return Finding(LOOK, "mlflow", f"{file} (MLFLOW_TRACKING_URI) does not exist yet", "the first run creates it")
    try:
        with open_database(file) as connection:
            problem = integrity_problem(connection, CHECK_SECONDS)
    except sqlite3.Error as error:
        problem = one_line(error)
    if problem:
        return Finding(WRONG, "mlflow", f"{file} is damaged: {problem}", "restore it from a copy, or move it away")
    return Finding(OK, "mlflow", f"{file} (MLFLOW_TRACKING_URI)")


def _ask(what: str, body: dict[str, Any]) -> Any:
    import requests

    url = f"{tracking_uri().rstrip('/')}/api/2.0/mlflow/{what}"
    answer = requests.post(url, json=body, timeout=SERVER_SECONDS)
    answer.raise_for_status()
    return answer.json()


@dataclass(frozen=True)
class Abandoned:
    """A run with status RUNNING and no process."""

    run_id: str
    name: str


def runs(root: Path) -> Iterator[Finding]:
    if not is_local() or not database().exists():
        return
    found, unknown = abandoned_runs(root)
    for run in found:
        text = f"the run {run.name} ({run.run_id[:8]}) has status RUNNING, but no process"
        yield Finding(LOOK, "runs", text, "`dvc repro` resumes it; `gpt2 doctor --mend` closes it as KILLED")
    if not found:
        yield Finding(OK, "runs", f"in progress: {unknown}" if unknown else "none has status RUNNING without a process")


def abandoned_runs(root: Path) -> tuple[list[Abandoned], int]:
    """RUNNING runs of the local store whose folder has no running stage, and the number of the other RUNNING ones.

    A held stage lock protects all runs of its folder: it does not say which one the stage writes.
    """
    with open_database(database()) as connection:
        rows = connection.execute(
            "SELECT run_uuid, name FROM runs WHERE status IN ('RUNNING', 'SCHEDULED') AND lifecycle_stage = 'active'"
        ).fetchall()
        tags = {
            run_id: dict(connection.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (run_id,)).fetchall())
            for run_id, _ in rows
        }
    processes = {process.folder for process in presence.stage_processes(root)}
    found = []
    for run_id, name in rows:
        folder = folder_of(tags[run_id], root)
        if folder is None or folder in processes or presence.stage_at_work(folder):
            continue
        if not presence.is_held(mlruns() / "spool" / f"{run_id}.lock"):
            found.append(Abandoned(str(run_id), str(name)))
    return found, len(rows) - len(found)


def folder_of(tags: dict[str, str], root: Path) -> Path | None:
    """The folder where a run's stages run; None for a run of another program."""
    if flow_run_id := tags.get("prefect_flow_run_id"):
        return root / paths.WORKSPACES / flow_run_id
    if "project_folder" in tags:
        return (root / tags["project_folder"]).resolve()
    return root if "code_sha256" in tags or "git_commit" in tags else None


def close_abandoned(root: Path) -> list[Abandoned]:
    """Set the status of abandoned runs to KILLED, and return them. Raises UserError where the store cannot be used."""
    if not is_local() or not database().exists():
        return []
    found, _ = abandoned_runs(root)
    if found:
        from gpt2ops.store.client import connect

        client = connect()
        for run in found:
            client.set_terminated(run.run_id, "KILLED")
    return found


def models(root: Path) -> Iterator[Finding]:
    """Whether the files of every registered version exist."""
    if not is_local() or not database().exists():
        return
    with open_database(database()) as connection:
        versions = connection.execute("SELECT name, version, storage_location, source FROM model_versions").fetchall()
        aliases = connection.execute("SELECT name, version, alias FROM registered_model_aliases").fetchall()
    champions = {(name, version) for name, version, alias in aliases if alias == "champion"}
    missing = []
    for name, version, storage, source in versions:
        path = path_of(storage or source or "")
        if path is not None and not (path / "MLmodel").is_file():
            missing.append((name, version, path))
    for name, version, path in missing:
        champion = " (champion)" if (name, version) in champions else ""
        text = f"{name} version {version}{champion} has no files at {path}"
        remedy = "`gpt2 relocate` after a move; else restore them, or `gpt2 rerun` the run that made it"
        yield Finding(WRONG if champion else LOOK, "models", text, remedy)
    if not missing:
        yield Finding(OK, "models", f"registered versions: {len(versions)}, all with their files")


def waiting_metrics(root: Path) -> Iterator[Finding]:
    """Metrics that MLflow did not take when they were measured."""
    from gpt2ops.maintenance.spool import lost_points, undelivered

    waiting = undelivered() if is_local() and database().exists() else {}
    for run_id, count in waiting.items():
        text = f"{count} metrics, tags or files of the run {run_id[:8]} wait in mlruns/spool"
        yield Finding(LOOK, "metrics", text, "the next run or stage sends them: dvc repro")
    if not is_local():
        from gpt2ops.tracking.journal import run_of, waiting_journals

        waiting = dict.fromkeys(map(run_of, waiting_journals()), 1)  # what the server has of it is not asked
        for run_id in waiting:
            text = f"metrics, tags or files of the run {run_id[:8]} wait in mlruns/spool for {redact(tracking_uri())}"
            yield Finding(LOOK, "metrics", text, "the next run or stage that reaches it sends them")
    if waiting:
        return
    if lost := lost_points(root):
        text = f"{lost} points of {paths.HISTORY} are not in MLflow: a full disk took neither them nor a note of them"
        yield Finding(LOOK, "metrics", text, "dvc repro --force --single-item report")
    else:
        yield Finding(OK, "metrics", "none wait to be sent to MLflow")
