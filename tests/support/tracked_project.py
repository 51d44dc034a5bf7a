"""A project's folder with a real MLflow store in SQLite, for tests that track runs in this process."""

import shutil
from typing import Any

import pytest

from gpt2core.storage.files import write_json
from gpt2ops.params.schema import parse_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.store.client import connect, experiment_id


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A database as `connect` creates it; making one for each test would take most of their time."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("GPT2_PROJECT_ROOT", str(folder))
        connect()
    return folder / "mlruns/mlflow.db"


@pytest.fixture
def project(bare_project, empty_store):
    (bare_project / "mlruns").mkdir()
    shutil.copy(empty_store, bare_project / "mlruns/mlflow.db")
    return bare_project


@pytest.fixture
def bare_project(tmp_path, monkeypatch):
    """A project's folder with a space in its name, without git, and no tracking server configured."""
    folder = tmp_path / "my project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    paths.PARAMS.write_text("train:\n  learning_rate: 0.002\n")
    paths.DVC_LOCK.write_text("schema: '2.0'\n")
    write_json(
        paths.TOKENS / "manifest.json",
        {
            "source": "https://me:secret@example.org/plays.txt",
            "sha256": "ab" * 32,
            "splits": {"train": {"tokens": 1000, "documents": 3, "sha256": "cd" * 32}},
        },
    )
    return folder


def params_with(**train):
    return parse_params({"train": train})


def history(run, key):
    points = connect().get_metric_history(run.run_id, key)
    return [(point.step, point.value) for point in sorted(points, key=lambda point: (point.step, point.timestamp))]


def runs_of(experiment: str) -> list[Any]:
    client = connect()
    return list(client.search_runs([experiment_id(client, experiment)]))


def spooled() -> list[str]:
    """What lies in the spool."""
    return [path.name for path in (mlruns() / "spool").iterdir() if not path.name.startswith(".")]
