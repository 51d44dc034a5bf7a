"""Where MLflow keeps what it is told: the store under `mlruns/`, or the one that MLFLOW_TRACKING_URI names."""

import errno
import json
import logging
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core.errors import UserError
from tasks import paths

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


def project_root() -> Path:
    """The folder that holds `mlruns/`: GPT2_PROJECT_ROOT (a flow run's workspace has it set), else the working one."""
    return Path(os.environ.get("GPT2_PROJECT_ROOT") or Path.cwd()).resolve()


def mlruns() -> Path:
    return project_root() / paths.MLRUNS


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file in `mlruns/`. May hold a password: show `redact(...)` of it."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local_uri()


def is_local() -> bool:
    """Whether the store is the one in `mlruns/`, which this project creates and looks after."""
    return tracking_uri() == _local_uri()


def _local_uri() -> str:
    return f"sqlite:///{(mlruns() / 'mlflow.db').as_posix()}"


_SECRET_IN_QUERY = re.compile(r"([?&][\w.-]*(?:token|key|sig|secret|passw|credential|auth)[\w.-]*)=[^&\s'\"]+", re.I)


def redact(text: str) -> str:
    """`text` without the secrets of any address in it: `user:password@`, and tokens, keys and signatures after `?`."""
    return _SECRET_IN_QUERY.sub(r"\1=REDACTED", re.sub(r"(?<=://)[^/@\s]+@", "", text))


def one_line(error: BaseException) -> str:
    """The first line of an error, safe to show."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # requests wraps a refused connection in four names of its own.
    return "no answer" if "Max retries exceeded" in lines[0] else redact(lines[0])[:300]


def prepare_mlflow() -> None:
    """Quiet MLflow and bound its waits; before its first import."""
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def connect() -> "MlflowClient":
    """A client of the store; the local one is created where it is missing. Raises UserError where it cannot be used."""
    prepare_mlflow()
    uri = tracking_uri()
    try:
        if is_local():
            _prepare_local_store(mlruns())
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # requests, SQLAlchemy, sqlite3 and MLflow each raise their own
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"cannot use the MLflow store {redact(uri)} ({one_line(error)}); {_remedy(str(error))}"
        ) from None
    return client


def _remedy(reason: str) -> str:
    if not is_local():
        return "start its server, or unset MLFLOW_TRACKING_URI to use the local store in mlruns/."
    if "full" in reason:
        return "free space on its disk."
    if "readonly" in reason or "Permission" in reason or "Read-only" in reason:
        return "make it writable."
    return "move that file away to start a new store."


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
        location = _artifact_location(mlruns()) if is_local() else None
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


def _artifact_location(directory: Path) -> str:
    return (directory / "artifacts").as_uri()


def _prepare_local_store(directory: Path) -> None:
    """Create `mlflow.db` once, whole, however many processes ask at once; mend its paths where the folder was moved."""
    from filelock import FileLock

    database = directory / "mlflow.db"
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".store.lock"):
        if not database.exists():
            _create_database(database)
        _mend_places(database, directory)


def _create_database(database: Path) -> None:
    partial = database.with_name(".mlflow.db.partial")
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
    partial.replace(database)


def _mend_places(database: Path, directory: Path) -> None:
    """MLflow keeps artifact places absolute: after the project's folder moved or was copied, point them here."""
    from tasks.relocate import change_places, misplaced

    with closing(sqlite3.connect(database, timeout=20)) as connection:
        if misplaced(connection, directory, tables=("experiments",)):  # few rows: most starts end here
            change_places(connection, misplaced(connection, directory))


def restored_runs() -> dict[str, str]:
    """Runs made here for results that another store's run produced: its id -> ours."""
    try:
        return dict(json.loads(_restored_runs_file().read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def remember_restored_run(old_run_id: str, run_id: str) -> None:
    from filelock import FileLock

    from gpt2core.files import write_json

    file = _restored_runs_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(".store.lock")):
        write_json(file, {**restored_runs(), old_run_id: run_id})


def _restored_runs_file() -> Path:
    return mlruns() / "restored_runs.json"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"batch_size": 16}}` -> `{"train.batch_size": 16}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
