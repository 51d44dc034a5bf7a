"""The SQLite file of a local MLflow store: made whole, and its paths changed where the folder was moved."""

import os
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from gpt2ops.store.address import is_local, sqlite_file, store_lock, uri_of
from gpt2ops.store.artifact_paths import change_places, misplaced

MAKING_SECONDS = 30.0  # MLflow takes 2 s to 10 s for the tables of a new file
_BEING_MADE = re.compile(
    r"already exists|duplicate column|no such (table|column)|out-of-date database schema|UNIQUE constraint failed"
)


def prepare_database(database: Path) -> None:
    """Create the file once, whole, however many processes ask at once; mend its paths where the folder was moved."""
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(store_lock("store")):
        if not database.exists():
            _create_database(database)
        if is_local():
            _mend_places(database, database.parent)


def _create_database(database: Path) -> None:
    partial = database.with_name(f".{database.name}.partial")
    partial.unlink(missing_ok=True)
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(uri_of(partial))
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
    with closing(sqlite3.connect(partial)) as connection:
        # Readers (the UI) and writers (two runs) then do not wait for each other.
        connection.execute("PRAGMA journal_mode=WAL")
    try:
        os.link(partial, database)
        partial.unlink()
    except FileExistsError:  # somebody has opened MLflow's page meanwhile, which makes its own
        partial.unlink()
    except OSError:  # a disk without links
        partial.replace(database)


def is_being_made(error: Exception) -> bool:
    """Whether another program, such as MLflow's page, makes the tables of a new file just now."""
    file = sqlite_file()
    try:
        fresh = file is not None and time.time() - file.stat().st_mtime < MAKING_SECONDS
    except OSError:
        return False
    return fresh and bool(_BEING_MADE.search(str(error)))


def _mend_places(database: Path, directory: Path) -> None:
    """MLflow stores absolute artifact paths: after the project's folder was moved or copied, point them here."""
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        if misplaced(connection, directory, tables=("experiments",)):  # few rows: most starts end here
            change_places(connection, misplaced(connection, directory))
