"""A client of the MLflow store."""

import errno
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gpt2core.errors import UserError
from gpt2ops.process.redact import redact
from gpt2ops.process.startup import quick_imports
from gpt2ops.store.address import artifact_folder, sqlite_file, tracking_uri
from gpt2ops.store.errors import StoreAwayError, is_away, one_line
from gpt2ops.store.local_database import MAKING_SECONDS, is_being_made, prepare_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ROOM_BYTES = 1 << 20
# Read by MLflow at import or at each call. What the user has set stays.
_MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # it prints a traceback for what is handled and said in a line here
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",  # a pickle runs whatever its author liked
    "GIT_PYTHON_REFRESH": "quiet",
}


def prepare_mlflow() -> None:
    """Quiet MLflow and bound its waits; before its first import."""
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def connect() -> "MlflowClient":
    """A client of the store; one in a SQLite file is created where it is missing.

    Raises StoreAwayError where it does not answer, UserError where it cannot be used.
    """
    prepare_mlflow()
    uri, begun_at = tracking_uri(), time.monotonic()
    try:
        if database := sqlite_file():
            prepare_database(database)
        while True:
            try:
                client = _client(uri)
                break
            except Exception as error:
                if not is_being_made(error) or time.monotonic() - begun_at > MAKING_SECONDS:
                    raise
                time.sleep(0.5)
    except Exception as error:  # requests, SQLAlchemy, sqlite3 and MLflow each raise their own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        line = f"cannot use the MLflow store {redact(uri)} ({one_line(error)}); {_remedy(str(error))}"
        raise (StoreAwayError(line, one_line(error)) if is_away(error) else UserError(line)) from None
    return client


def _client(uri: str) -> "MlflowClient":
    with quick_imports():
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)  # imports what the kind of store needs
    client.search_experiments(max_results=1)
    return client


def _remedy(reason: str) -> str:
    if "error code 401" in reason:
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a login that it knows."
    if sqlite_file() is None:
        return "start its server, or unset MLFLOW_TRACKING_URI to use the local store in mlruns/."
    if "locked" in reason:
        return "another program writes into it; run again when it has ended."
    if "full" in reason or _disk_is_full():
        return "free space on its disk."
    if "readonly" in reason or "Permission" in reason or "Read-only" in reason:
        return "make it writable."
    return "move that file away to start a new store."


def _disk_is_full() -> bool:
    """SQLite calls it "disk I/O error" where there is no room for the files it keeps beside a database."""
    database = sqlite_file()
    try:
        return database is not None and shutil.disk_usage(database.parent).free < _ROOM_BYTES
    except OSError:
        return False


@contextmanager
def fluent_mlflow() -> Iterator[None]:
    """Point MLflow's module-level functions at this store, without their notices.

    MLflow's client needs it too: to make a version of a logged model it opens a second client of the default store.
    MLflow writes the address into the environment, where it would pass for the user's choice: it is put back.
    """
    prepare_mlflow()
    import mlflow

    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri())
    mlflow.set_registry_uri(tracking_uri())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        if chosen is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = chosen


def experiment_id(client: "MlflowClient", name: str) -> str:
    """Id of the experiment `name`, created where it is not there. Raises UserError where it was deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        database = sqlite_file()
        location = artifact_folder(database).as_uri() if database else None
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception:
            # Another process may have been faster.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"run.experiment ({name!r}) was deleted in MLflow; choose another name, or restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`."
        )
    return str(experiment.experiment_id)
