"""After the project's folder was moved or copied: MLflow keeps artifact places absolute, and they point to the old one.

The first run in the new place mends them on the way (`tracking_store.connect`); this does it for those who only want to
load a model, says what it changed, and keeps a copy of the database as it was.
"""

import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gpt2core.errors import UserError
from gpt2ops.tracking.artifact_paths import Change, change_places, misplaced, old_folder, store_of
from gpt2ops.tracking.store import is_local, mlruns, one_line, redact, tracking_uri

BACKUP = "mlflow.db.before-relocate"


@dataclass(frozen=True)
class Relocation:
    """What is, or would be, changed."""

    changes: tuple[Change, ...]
    backup: Path | None

    @property
    def old_folders(self) -> dict[str, int]:
        """How many places named each earlier project."""
        return dict(Counter(old_folder(store_of(change.old)) for change in self.changes))


def relocate(*, dry_run: bool = False) -> Relocation:
    """Point every place in the local store to this folder's `mlruns/`, all of them or, where one fails, none.

    Raises UserError for a remote store, none, or one that is damaged or not writable.
    """
    if not is_local():
        raise UserError(
            f"the store is {redact(tracking_uri())}, not the one in mlruns/: its places are its server's. "
            "Unset MLFLOW_TRACKING_URI to mend mlruns/."
        )
    database = mlruns() / "mlflow.db"
    if not database.is_file():
        raise UserError(f"{database} is missing: there is no store here whose places could be mended.")
    try:
        with closing(sqlite3.connect(database, timeout=20)) as connection:
            changes = tuple(misplaced(connection, mlruns()))
            if dry_run or not changes:
                return Relocation(changes, None)
            return Relocation(changes, _apply(connection, database, changes))
    except sqlite3.Error as error:
        raise UserError(f"{database} cannot be mended ({one_line(error)}); nothing was changed.") from None


def _apply(connection: sqlite3.Connection, database: Path, changes: tuple[Change, ...]) -> Path:
    backup = database.with_name(BACKUP)
    partial = backup.with_name(f".{BACKUP}.partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(partial)) as copy:
        connection.backup(copy)
    partial.replace(backup)
    change_places(connection, changes)
    return backup
