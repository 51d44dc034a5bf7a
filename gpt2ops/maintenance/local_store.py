"""The local SQLite store, read without MLflow: its import takes a second, and it would create or mend what it opens."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from gpt2ops.pipeline.paths import mlruns


def database() -> Path:
    return mlruns() / "mlflow.db"


@contextmanager
def open_database(file: Path) -> Iterator[sqlite3.Connection]:
    """For reading; also where its folder is read-only, and SQLite cannot have its helper files."""
    uri = f"{file.resolve().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=2)
    try:
        connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
    except sqlite3.OperationalError as error:
        connection.close()
        if "unable to open" not in str(error) and "readonly" not in str(error):
            raise
        connection = sqlite3.connect(f"{uri}&immutable=1", uri=True)
    with closing(connection):
        yield connection
