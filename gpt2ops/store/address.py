"""Where the MLflow store is: under `mlruns/`, or where MLFLOW_TRACKING_URI says."""

import hashlib
import os
from pathlib import Path

from gpt2ops.pipeline.paths import mlruns, project_root, user_cache
from gpt2ops.process.redact import redact


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file in `mlruns/`. May hold a password: show `redact(...)` of it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _local_uri()
    file = uri.removeprefix("sqlite:///")
    if file in (uri, "", ":memory:") or file.startswith("file:"):
        return uri
    # Not in a flow run's own folder, which goes when it has ended.
    return f"sqlite:///{(project_root() / file).as_posix()}"


def is_local() -> bool:
    """Whether the store is the one in `mlruns/`, which this project creates and maintains."""
    return tracking_uri() == _local_uri()


def _local_uri() -> str:
    return f"sqlite:///{(mlruns() / 'mlflow.db').as_posix()}"


def sqlite_file() -> Path | None:
    """The file of a store that is one."""
    uri = tracking_uri()
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    return file if uri.startswith("sqlite:///") and file.is_absolute() else None


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
