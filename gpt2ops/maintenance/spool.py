"""What waits in `mlruns/spool` for a run of the local store: `gpt2 doctor` counts it, `gpt2 gc` clears it away."""

import sqlite3
from collections import Counter
from pathlib import Path

from gpt2core.storage.files import read_json
from gpt2ops.maintenance.local_store import database, open_database
from gpt2ops.maintenance.presence import stage_at_work
from gpt2ops.pipeline import paths
from gpt2ops.store.address import is_local
from gpt2ops.tracking.completeness import reported_rows
from gpt2ops.tracking.journal import Point, Record, journal_entries, plan_of, read_records, run_of, spool
from gpt2ops.tracking.restored_runs import stored_run_id


def spooled_journals() -> dict[str, list[Path]]:
    """The entries of each journal, where there is a store and MLflow gave the run its id."""
    entries = journal_entries() if database().exists() else {}
    return {name: found for name, found in entries.items() if is_run_id(run_of(name))}


def undelivered() -> dict[str, int]:
    """How many records of each run wait to be sent."""
    waiting: Counter[str] = Counter()
    for name in spooled_journals():
        waiting[run_of(name)] += len(records_to_send(name) or ())
    return {run_id: count for run_id, count in waiting.items() if count}


def records_to_send(name: str) -> list[Record] | None:
    """The records of a journal that the store does not have; None where it has no such run, and never will."""
    records, run_id = read_records(spool() / name), stored_run_id(run_of(name))
    if plan_of(records):
        return records
    with open_database(database()) as connection:
        row = connection.execute("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
        if row != ("active",):
            return None
        return [record for record in records if not _is_stored(connection, run_id, record)]


def lost_points(root: Path) -> int:
    """How many points of the training's history in `root` its run in the local store lacks; 0 while a stage is at work.

    Raises UserError where the history is damaged.
    """
    try:
        run_id = stored_run_id(str(read_json(root / paths.RUN)["run_id"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    if not is_local() or not database().exists() or stage_at_work(root):
        return 0
    with open_database(database()) as connection:
        row = connection.execute("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
        if row != ("active",):
            return 0
        stored = set(connection.execute("SELECT key, step FROM metrics WHERE run_uuid = ?", (run_id,)))
    return len({(key, step) for key, values in reported_rows(root).items() for step in values} - stored)


def is_run_id(name: str) -> bool:
    """Whether MLflow gave this name: others are the user's own."""
    return len(name) == 32 and all(letter in "0123456789abcdef" for letter in name)


def _is_stored(connection: sqlite3.Connection, run_id: str, record: Record) -> bool:
    if not isinstance(record, Point):
        return False
    row = connection.execute(
        "SELECT 1 FROM metrics WHERE run_uuid = ? AND key = ? AND step = ? AND timestamp = ? AND value = ?",
        (run_id, record.key, record.step, record.timestamp, record.value),
    ).fetchone()
    return row is not None
