"""The MLflow store: the one under `mlruns/`, or the one that MLFLOW_TRACKING_URI names."""

import errno
import getpass
import hashlib
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2core.errors import UserError
from gpt2core.storage.files import read_json
from gpt2ops.paths import mlruns, project_root
from gpt2ops.process.redact import redact as redact
from gpt2ops.process.startup import quick_imports
from gpt2ops.tracking.artifact_paths import change_places, misplaced

if TYPE_CHECKING:
    from mlflow import MlflowClient

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


def _sqlite_file() -> Path | None:
    """The file of a store that is one."""
    uri = tracking_uri()
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    return file if uri.startswith("sqlite:///") and file.is_absolute() else None


def store_lock(name: str) -> Path:
    """The file of a lock that all who use this store share: in `mlruns/`, beside another SQLite file, else by user."""
    if is_local():
        return mlruns() / f".{name}.lock"
    if database := _sqlite_file():
        return database.with_name(f".{database.name}.{name}.lock")
    uri = hashlib.sha256(redact(tracking_uri()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"gpt2-{getpass.getuser()}" / f"{uri}.{name}.lock"


def one_line(error: BaseException) -> str:
    """The first line of an error, safe to show."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # requests wraps a refused connection in four names of its own.
    for sign, words in (
        ("error code 401", "it wants a login"),
        ("Max retries exceeded", "no answer"),
        ("timeout exception", "no answer in time"),
    ):
        if sign in lines[0]:
            return words
    return redact(lines[0])[:300]


def prepare_mlflow() -> None:
    """Quiet MLflow and bound its waits; before its first import."""
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


class StoreAwayError(UserError):
    """The store does not answer now, though nothing says that it is wrong. `reason` is why, in a few words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


_ROOM_BYTES = 1 << 20
MAKING_SECONDS = 30.0  # MLflow takes 2 s to 10 s for the tables of a new file
_BEING_MADE = re.compile(
    r"already exists|duplicate column|no such (table|column)|out-of-date database schema|UNIQUE constraint failed"
)
_AWAY = re.compile(
    r"Max retries exceeded|timeout exception|timed out|Connection (refused|reset|aborted)|database is locked"
    r"|error code (408|429|5\d\d)|too many (429|5\d\d) error responses"
)


def is_away(error: BaseException) -> bool:
    """Whether the error means that the store does not answer now, not that it, its address or a request is wrong."""
    text = str(error)
    return isinstance(error, StoreAwayError) or (bool(_AWAY.search(text)) and "SSLError" not in text)


def connect() -> "MlflowClient":
    """A client of the store; one in a SQLite file is created where it is missing.

    Raises StoreAwayError where it does not answer, UserError where it cannot be used.
    """
    prepare_mlflow()
    uri, begun_at = tracking_uri(), time.monotonic()
    try:
        if database := _sqlite_file():
            _prepare_store(database)
        while True:
            try:
                client = _client(uri)
                break
            except Exception as error:
                if not _is_being_made(error) or time.monotonic() - begun_at > MAKING_SECONDS:
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
    if _sqlite_file() is None:
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
    database = _sqlite_file()
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
        database = _sqlite_file()
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


def artifact_folder(database: Path) -> Path:
    """Where the files of a SQLite store's runs are: beside it, not in the folder of whoever was first."""
    return database.with_name("artifacts" if is_local() else f"{database.stem}-artifacts")


def _prepare_store(database: Path) -> None:
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

    engine = create_sqlalchemy_engine(f"sqlite:///{partial.as_posix()}")
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


def _is_being_made(error: Exception) -> bool:
    """Whether another program, such as MLflow's page, makes the tables of a new file just now."""
    file = _sqlite_file()
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


def restored_runs() -> dict[str, str]:
    """New id of each run that was created here for another id: of another store, or begun while the store was away."""
    try:
        found = read_json(_restored_runs_file())
    except (OSError, ValueError):  # where it is damaged, such a run is asked for by its own id
        return {}
    return {str(old): str(new) for old, new in found.items()} if isinstance(found, dict) else {}


def stored_run_id(run_id: str) -> str:
    """The id that this store gave a run which models/run.json knows by another one."""
    return restored_runs().get(run_id, run_id)


def remember_restored_run(old_run_id: str, run_id: str) -> None:
    from filelock import FileLock

    from gpt2core.storage.files import write_json

    file = _restored_runs_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(".store.lock")):
        write_json(file, {**restored_runs(), old_run_id: run_id})


def _restored_runs_file() -> Path:
    return mlruns() / "restored_runs.json"
