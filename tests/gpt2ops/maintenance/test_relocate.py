"""`gpt2 relocate`: after the folder was moved or copied, its registered models load again."""

import shutil
import sqlite3
import sys
from pathlib import Path

import mlflow.pytorch
import pytest
import torch
from mlflow import MlflowClient

from gpt2core.config import GPTConfig
from gpt2core.model import GPT
from gpt2core.storage.files import sha256_file
from gpt2ops.maintenance.relocate import BACKUP
from gpt2ops.store.artifact_paths import old_folder, path_of, placed_in, store_of
from gpt2ops.store.client import connect, experiment_id, fluent_mlflow
from tests.golden.make import IDS, export_settings
from tests.support.maintained import Commands, in_project

CHAMPION = "models:/gpt2@champion"


@pytest.fixture
def gpt2(monkeypatch, capsys) -> Commands:
    return Commands(monkeypatch, capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, torch.Tensor]:
    """A folder with a blank in its name, a small model registered in its store, and the model's logits."""
    root = tmp_path_factory.mktemp("trained") / "my project"
    root.mkdir()
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, 16, n_layer=1, n_head=2, n_embd=8)).eval()
    with pytest.MonkeyPatch.context() as patch:
        in_project(root, patch)
        client = connect()
        run = client.create_run(experiment_id(client, "gpt2"), tags={"project_folder": "."})
        client.log_text(run.info.run_id, "hello", "reports/note.txt")
        with fluent_mlflow(), mlflow.start_run(run_id=run.info.run_id, log_system_metrics=False):
            logged = mlflow.pytorch.log_model(model, name="gpt2", **export_settings(32))
            client.create_registered_model("gpt2")
            client.create_model_version("gpt2", logged.model_uri, run_id=run.info.run_id, model_id=logged.model_id)
        client.set_registered_model_alias("gpt2", "champion", "1")
        client.set_terminated(run.info.run_id)
    with torch.inference_mode():
        return root, model(torch.tensor(IDS))


def load(root: Path):
    """As any other program does, which knows nothing of this project."""
    uri = f"sqlite:///{root}/mlruns/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        return mlflow.pytorch.load_model(CHAMPION)
    finally:
        mlflow.set_tracking_uri(None)
        mlflow.set_registry_uri(None)


@pytest.fixture
def moved(trained, tmp_path, monkeypatch) -> Path:
    """The folder at another place, and not at its own any more."""
    root, _ = trained
    away, here = root.with_name("away"), tmp_path / "new place"
    shutil.copytree(root, here)
    root.rename(away)
    in_project(here, monkeypatch)
    yield here
    away.rename(root)


@pytest.mark.slow
def test_the_champion_of_a_moved_folder_loads_again_after_relocate(trained, moved, gpt2) -> None:
    with pytest.raises(Exception, match="No such"):
        load(moved)
    before = sha256_file(moved / "mlruns/mlflow.db")
    dry = gpt2("relocate", "--dry-run")
    assert dry.code == 0
    assert f"paths pointed to {trained[0]}; they would point to {moved}" in dry.out
    assert "nothing was changed" in dry.out
    assert sha256_file(moved / "mlruns/mlflow.db") == before

    done = gpt2("relocate", "--json")
    assert {(change["table"], change["column"]) for change in done.json["changes"]} == {
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "storage_location"),
    }
    torch.testing.assert_close(load(moved)(torch.tensor(IDS)), trained[1])
    client = MlflowClient(f"sqlite:///{moved}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("gpt2").experiment_id])
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["reports"]
    with sqlite3.connect(moved / "mlruns" / BACKUP) as connection:
        assert str(trained[0].name).replace(" ", "%20") in str(connection.execute("SELECT * FROM runs").fetchall())
    assert "nothing to mend" in gpt2("relocate").out


def test_a_copy_gets_its_own_paths_and_the_original_keeps_its(trained, tmp_path, monkeypatch, gpt2) -> None:
    root, _ = trained
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    before = sha256_file(root / "mlruns/mlflow.db")
    in_project(copy, monkeypatch)
    assert gpt2("relocate").code == 0
    client = MlflowClient(f"sqlite:///{copy}/mlruns/mlflow.db")
    assert client.get_model_version("gpt2", "1")
    assert client.get_experiment_by_name("gpt2").artifact_location == (copy / "mlruns/artifacts").as_uri()
    assert sha256_file(root / "mlruns/mlflow.db") == before


def test_places_whose_files_are_only_elsewhere_stay(trained, tmp_path, monkeypatch, gpt2) -> None:
    root, _ = trained
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    in_project(copy, monkeypatch)
    other = tmp_path / "other/mlruns/artifacts"
    other.mkdir(parents=True)
    inside = other / "run"
    inside.mkdir()
    with sqlite3.connect(copy / "mlruns/mlflow.db") as connection:
        connection.execute("UPDATE runs SET artifact_uri = ?", (inside.as_uri(),))
    assert gpt2("relocate").code == 0
    with sqlite3.connect(copy / "mlruns/mlflow.db") as connection:
        assert connection.execute("SELECT artifact_uri FROM runs").fetchall() == [(inside.as_uri(),)]


def test_relocate_that_fails_in_the_middle_changes_nothing(trained, tmp_path, monkeypatch, gpt2) -> None:
    copy = Path(shutil.copytree(trained[0], tmp_path / "copy"))
    in_project(copy, monkeypatch)
    with sqlite3.connect(copy / "mlruns/mlflow.db") as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE UPDATE ON model_versions BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
        before = connection.execute("SELECT artifact_uri FROM runs").fetchall()
    result = gpt2("relocate")
    assert result.code == 1
    assert "the disk is full" in result.err
    assert "nothing was changed" in result.err
    with sqlite3.connect(copy / "mlruns/mlflow.db") as connection:
        assert connection.execute("SELECT artifact_uri FROM runs").fetchall() == before


@pytest.mark.parametrize("uri", ["http://me:secret@127.0.0.1:9", "postgresql://me:secret@db/mlflow"])
def test_relocate_refuses_a_remote_store_in_one_line_without_its_password(uri, tmp_path, monkeypatch, gpt2) -> None:
    in_project(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    result = gpt2("relocate")
    assert (result.code, len(result.err.splitlines()), "secret" in result.err) == (1, 1, False)


def test_relocate_without_a_store_or_with_a_damaged_one_is_one_line(tmp_path, monkeypatch, gpt2) -> None:
    in_project(tmp_path, monkeypatch)
    assert "is missing" in gpt2("relocate").err
    assert not (tmp_path / "mlruns").exists()
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns/mlflow.db").write_bytes(b"noise" * 1000)
    result = gpt2("relocate")
    assert (result.code, len(result.err.splitlines()), "nothing was changed" in result.err) == (1, 1, True)


@pytest.mark.parametrize(
    ("place", "new"),
    [
        ("file:///old/a%20b/mlruns/artifacts", "file:///new/mlruns/artifacts"),
        ("file:///old/mlruns/artifacts/models/m-1/artifacts", "file:///new/mlruns/artifacts/models/m-1/artifacts"),
        ("/old/mlruns/0", "/new/mlruns/0"),
        ("s3://bucket/mlruns/artifacts", None),
        ("models:/m-1", None),
        ("mlflow-artifacts:/mlruns/artifacts", None),
        ("file:///data/shared", None),
        ("/old/mlruns-of-before/artifacts", None),
    ],
)
def test_a_place_in_an_mlruns_is_called_anew_and_others_are_not(place, new) -> None:
    assert placed_in(place, Path("/new/mlruns")) == new


def test_a_place_is_a_path_where_it_is_one_of_this_machine() -> None:
    assert path_of("file:///old/a%20b/mlruns") == Path("/old/a b/mlruns")
    assert path_of("s3://bucket/x") is None
    assert old_folder(store_of("file:///old/a%20b/mlruns/artifacts")) == "/old/a b"


if sys.platform == "win32":
    pytestmark = pytest.mark.skip(reason="paths of POSIX")
