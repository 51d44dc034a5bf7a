"""`gpt2 relocate`: updates the absolute artifact paths in the MLflow store after the project was moved or copied.

The first run in the new folder updates them too (`gpt2ops.store.client.connect`); this command does it before a model
is loaded, reports each change, and keeps a copy of the earlier database.
"""

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gpt2core.errors import UserError
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.process.redact import redact
from gpt2ops.store.address import is_local, tracking_uri
from gpt2ops.store.artifact_paths import Change, change_places, misplaced, old_folder, store_of
from gpt2ops.store.errors import one_line

BACKUP = "mlflow.db.before-relocate"


@dataclass(frozen=True)
class Relocation:
    """The changes made, or with `dry_run` to be made."""

    changes: tuple[Change, ...]
    backup: Path | None

    @property
    def old_folders(self) -> dict[str, int]:
        """The number of changed paths for each earlier project folder."""
        return dict(Counter(old_folder(store_of(change.old)) for change in self.changes))


def relocate(*, dry_run: bool = False) -> Relocation:
    """Point every path in the local store to this folder's `mlruns/`: all of them, or none where one fails.

    Raises UserError for a remote store, none, or one that is damaged or not writable.
    """
    if not is_local():
        raise UserError(
            f"the store is {redact(tracking_uri())}, not the one in mlruns/, and its server manages its paths; "
            "unset MLFLOW_TRACKING_URI to update mlruns/."
        )
    database = mlruns() / "mlflow.db"
    if not database.is_file():
        raise UserError(f"{database} is missing: there is no MLflow store here to update.")
    try:
        with closing(sqlite3.connect(database, timeout=20)) as connection:
            changes = tuple(misplaced(connection, mlruns()))
            if dry_run or not changes:
                return Relocation(changes, None)
            return Relocation(changes, _apply(connection, database, changes))
    except sqlite3.Error as error:
        raise UserError(f"{database} cannot be updated ({one_line(error)}); nothing was changed.") from None


def _apply(connection: sqlite3.Connection, database: Path, changes: tuple[Change, ...]) -> Path:
    backup = database.with_name(BACKUP)
    partial = backup.with_name(f".{BACKUP}.partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(partial)) as copy:
        connection.backup(copy)
    partial.replace(backup)
    change_places(connection, changes)
    return backup
