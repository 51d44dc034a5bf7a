"""Absolute artifact paths in a local store: which point to another folder than its own, and how they are changed."""

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Columns of MLflow 3.17 that hold where artifacts lie. A run's tags and data sets say where things were: history.
PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
    ("workspaces", "default_artifact_root"),
    ("workspaces", "trace_archival_location"),
)
TRACE_PLACE = "mlflow.artifactLocation"  # a trace's place is one of its tags
TABLES = (*dict.fromkeys(table for table, _ in PLACES), "trace_tags")


@dataclass(frozen=True)
class Change:
    table: str
    column: str
    old: str
    new: str


def misplaced(connection: sqlite3.Connection, directory: Path, tables: Sequence[str] = TABLES) -> list[Change]:
    """The paths that point to another `mlruns/` than `directory`, except those whose files exist only there."""
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    tables = [table for table in tables if table in there]
    found = []
    for table, column in PLACES:
        if table not in tables or column not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
            continue
        rows = connection.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE '%/mlruns/%'")
        found += [(table, column, old) for (old,) in rows]
    if "trace_tags" in tables:
        rows = connection.execute("SELECT DISTINCT value FROM trace_tags WHERE key = ?", (TRACE_PLACE,))
        found += [("trace_tags", "value", old) for (old,) in rows]
    return [
        Change(table, column, old, new)
        for table, column, old in found
        if (new := placed_in(old, directory)) is not None and new != old and (_is_there(new) or not _is_there(old))
    ]


def _is_there(place: str) -> bool:
    path = path_of(place)
    return path is not None and path.exists()


def placed_in(place: str, directory: Path) -> str | None:
    """The path or file: URI `place` of some `mlruns/`, with `directory` in its stead; None for other paths."""
    store = store_of(place)
    if not store:
        return None
    inside = place[len(store) :]
    return (directory.as_uri() if place.startswith("file:") else directory.as_posix()) + inside


def store_of(place: str) -> str:
    """The part of `place` up to and including `/mlruns`, where it is a path of a machine; else empty."""
    match = re.match(r"(?:file:/{1,3}|/|[A-Za-z]:[/\\]).*?/mlruns(?=/(?:artifacts|\d+)(?:/|$))", place)
    return match[0] if match else ""


def path_of(place: str) -> Path | None:
    """The path of `place` on this machine; None where it is elsewhere (s3://, mlflow-artifacts:)."""
    if place.startswith("file:"):
        return Path(unquote(urlsplit(place).path))
    return Path(place) if re.match(r"/|[A-Za-z]:[/\\]", place) else None


def change_places(connection: sqlite3.Connection, changes: Sequence[Change]) -> None:
    """Apply all changes, or none, in one transaction."""
    with connection:
        for change in changes:
            key = f" AND key = '{TRACE_PLACE}'" if change.table == "trace_tags" else ""
            connection.execute(
                f"UPDATE {change.table} SET {change.column} = ? WHERE {change.column} = ?{key}",
                (change.new, change.old),
            )


def old_folder(store: str) -> str:
    """The project's folder of a `mlruns`, for messages: `file:///home/me/old/mlruns` -> `/home/me/old`."""
    path = path_of(store)
    return str(path.parent) if path else store
