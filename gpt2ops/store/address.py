"""Where the MLflow store is: under `mlruns/`, or where MLFLOW_TRACKING_URI says."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote

from gpt2core.errors import UserError
from gpt2ops.pipeline.paths import mlruns, project_root, user_cache
from gpt2ops.process.redact import redact

_SQLITE = "sqlite:///"
SQLITE_PATH_BYTES = 504  # SQLite's own 512, less what it appends to name a journal


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file in `mlruns/`. May hold a password: show `redact(...)` of it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _local_uri()
    file, mark, query = uri.removeprefix(_SQLITE).partition("?")
    if not uri.startswith(_SQLITE) or file in ("", ":memory:") or file.startswith("file:"):
        return uri
    # Not in a flow run's own folder, which goes when it has ended.
    return f"{uri_of(project_root() / unquote(file))}{mark}{query}"


def is_local() -> bool:
    """Whether the store is the one in `mlruns/`, which this project creates and maintains."""
    return not os.environ.get("MLFLOW_TRACKING_URI") or sqlite_file() == mlruns() / "mlflow.db"


def _local_uri() -> str:
    return uri_of(mlruns() / "mlflow.db")


def uri_of(database: Path) -> str:
    """The address of a SQLite file.

    Raises UserError for a path that MLflow, or SQLAlchemy, takes for another one, or that is too long for SQLite.
    """
    if found := re.search(r"\?|%[0-9A-Fa-f]{2}", database.as_posix()):
        raise UserError(
            f"MLflow cannot keep its store in {database.parent}: its path has {found[0]!r}; rename that folder, or set "
            "MLFLOW_TRACKING_URI."
        )
    if (length := len(os.fsencode(database))) > SQLITE_PATH_BYTES:
        raise UserError(
            f"MLflow cannot keep its store here: the path of {database.name} has {length} bytes, and SQLite takes "
            f"{SQLITE_PATH_BYTES}; move the project to a folder with a shorter path, or set MLFLOW_TRACKING_URI."
        )
    return _SQLITE + database.as_posix()


def sqlite_file() -> Path | None:
    """The file of a store that is one."""
    uri = tracking_uri()
    file = Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0]))
    return file if uri.startswith(_SQLITE) and file.is_absolute() else None


def store_lock(name: str) -> Path:
    """The file of a lock that all who use this store share: in `mlruns/`, beside another SQLite file, else by user."""
    if is_local():
        return mlruns() / f".{name}.lock"
    if database := sqlite_file():
        return database.with_name(f".{database.name}.{name}.lock")
    uri = hashlib.sha256(redact(tracking_uri()).encode()).hexdigest()[:16]
    return user_cache() / "locks" / f"{uri}.{name}.lock"  # in a folder for all another user could hold it for ever


def artifact_folder(database: Path) -> Path:
    """Where the files of a SQLite store's runs are: beside it, not in the folder of whoever was first."""
    return database.with_name("artifacts" if is_local() else f"{database.stem}-artifacts")
