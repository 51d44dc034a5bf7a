"""Tracking against a real SQLite store in a temporary project."""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.engine.cached_run import link_cached_run
from gpt2core.errors import UserError
from gpt2core.storage.files import write_json
from gpt2ops.maintenance.doctor.examine import safely
from gpt2ops.maintenance.doctor.finding import WRONG
from gpt2ops.maintenance.doctor.store import store
from gpt2ops.params.schema import parse_params
from gpt2ops.pipeline import paths
from gpt2ops.process.redact import redact
from gpt2ops.store.address import SQLITE_PATH_BYTES, store_lock, tracking_uri, uri_of
from gpt2ops.store.client import connect, experiment_id
from gpt2ops.tracking.api import start_run, tracked_run
from tests.support.tracked_project import history, params_with

REPOSITORY = Path(__file__).parents[3]


def test_a_run_has_every_parameter_and_says_where_it_came_from(project, monkeypatch):
    monkeypatch.setenv("GPT2_FLOW_RUN_ID", "flow-7")
    with start_run(params_with(learning_rate=0.002), run_name="small") as run:
        pass
    stored = connect().get_run(run.run_id)
    assert stored.info.run_name == "small"
    assert stored.info.status == "FINISHED"
    assert stored.data.params["train.learning_rate"] == "0.002"
    assert stored.data.params["train.stop.metric"] == "train_ema"
    assert stored.data.params["register.gate.min_improvement"] == "0.0"
    assert stored.data.params["model.n_layer"] == "null"
    assert stored.data.tags["data_sha256"] == "ab" * 32
    assert stored.data.tags["prefect_flow_run_id"] == "flow-7"
    assert stored.data.tags["git_commit"] == "unknown"
    assert len(stored.data.tags["dvc_lock_sha256"]) == 64
    assert any(key.startswith("system/cpu") for key in stored.data.metrics)


def test_artifacts_lie_below_mlruns_where_they_can_be_read_again(project):
    with start_run(params_with()) as run:
        run.log_text("hello", "notes/hello.txt")
    stored = connect().get_run(run.run_id)
    assert stored.info.artifact_uri.startswith((project / "mlruns/artifacts").as_uri())
    assert (project / "mlruns/artifacts" / run.run_id / "artifacts/notes/hello.txt").read_text() == "hello"
    assert [item.path for item in connect().list_artifacts(run.run_id)] == ["dvc.lock", "notes", "params.yaml"]


def test_git_commit_is_recorded_and_only_changed_code_makes_it_dirty(project):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments], check=True, capture_output=True
        )

    git("init")
    git("add", "params.yaml", "dvc.lock")
    git("commit", "-m", "start")
    paths.DVC_LOCK.write_text("schema: '2.0'\nstages: {}\n")
    with start_run(params_with()) as clean:
        pass
    paths.PARAMS.write_text("train:\n  learning_rate: 0.5\n")
    with start_run(params_with()) as dirty:
        pass
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert connect().get_run(clean.run_id).data.tags["git_commit"] == head
    assert connect().get_run(clean.run_id).data.tags["git_dirty"] == "false"
    assert connect().get_run(dirty.run_id).data.tags["git_dirty"] == "true"


def test_a_download_inside_another_repository_does_not_claim_its_commit(project):
    subprocess.run(["git", "init", ".."], check=True, capture_output=True)
    with start_run(params_with()) as run:
        pass
    assert connect().get_run(run.run_id).data.tags["git_commit"] == "unknown"


def test_metrics_keep_step_and_time_and_skip_what_is_no_number(project):
    with start_run(params_with()) as run:
        run.log_metrics({"train_loss": 3.5, "val_loss": float("nan"), "grad_norm": None}, step=10, timestamp=1234)
        run.log_metrics({"train_loss": 3.25, "val_loss": float("inf")}, step=20)
        run.log_metrics({"train_loss": 3.0})
    assert history(run, "train_loss") == [(10, 3.5), (20, 3.25), (20, 3.0)]
    assert history(run, "val_loss") == []
    assert min(point.timestamp for point in connect().get_metric_history(run.run_id, "train_loss")) == 1234
    assert connect().get_run(run.run_id).data.metrics["train_loss"] == 3.0


def test_a_resumed_run_is_the_same_run_and_has_each_step_once(project):
    with start_run(params_with()) as first:
        for step in (10, 20, 30):
            first.log_metrics({"train_loss": 4 - step / 100}, step=step)
    with start_run(params_with(learning_rate=0.5), resume_run_id=first.run_id) as second:
        for step in (20, 30, 40):
            second.log_metrics({"train_loss": 4 - step / 100}, step=step)
    assert second.run_id == first.run_id
    assert [step for step, _ in history(first, "train_loss")] == [10, 20, 30, 40]
    changed = json.loads(connect().get_run(first.run_id).data.tags["params_changed_later"])
    assert changed == {"train.learning_rate": "0.5", "train.min_learning_rate": "0.025"}


def test_resuming_a_run_that_was_deleted_starts_a_new_one(project):
    with start_run(params_with()) as first:
        pass
    connect().delete_run(first.run_id)
    with start_run(params_with(), resume_run_id=first.run_id) as second:
        pass
    assert second.run_id != first.run_id


def test_a_later_stage_writes_into_the_run_of_finetune(project):
    with start_run(params_with(learning_rate=0.002)) as run:
        write_json(paths.RUN, run.record("gpt2"))
    with tracked_run() as later:
        later.log_metrics({"evaluate/test_perplexity": 12.5})
    stored = connect().get_run(run.run_id)
    assert later.run_id == run.run_id
    assert stored.data.metrics["evaluate/test_perplexity"] == 12.5
    assert stored.info.status == "FINISHED"
    assert "params_changed_later" not in stored.data.tags


def test_a_stage_that_fails_marks_the_run(project):
    with start_run(params_with()) as run:
        write_json(paths.RUN, run.record("gpt2"))
    with pytest.raises(UserError), tracked_run():
        raise UserError("no")
    assert connect().get_run(run.run_id).info.status == "FAILED"


def test_a_run_of_another_store_is_made_anew_once_for_all_stages(project):
    write_json(paths.RUN, {"run_id": "0" * 32, "run_name": "theirs", "experiment": "gpt2", "tracking_uri": "x"})
    write_json(paths.TRAIN_METRICS, {"train_loss_full": 2.5, "stop_reason": "target", "target_reached": True})
    write_json(paths.EVALUATE_METRICS, {"test": {"perplexity": 20.0}, "verbatim_recall": 0.1})
    write_json(paths.HISTORY, [{"step": 10, "train_loss": 4.0, "val_loss": None}, {"step": 20, "train_loss": 3.0}])
    with tracked_run() as first:
        pass
    with tracked_run() as second:
        pass
    stored = connect().get_run(first.run_id)
    assert second.run_id == first.run_id
    assert stored.info.run_name == "theirs"
    assert stored.data.tags["cached_from"] == "0" * 32
    assert stored.data.params["train.learning_rate"] == "0.002"
    assert stored.data.metrics["train_loss_full"] == 2.5
    assert stored.data.metrics["evaluate/test_perplexity"] == 20.0
    assert history(first, "train_loss") == [(10, 4.0), (20, 3.0)]


@pytest.mark.parametrize(("content", "word"), [(None, "missing"), ("{", "damaged"), ("[]", "damaged")])
def test_without_a_usable_run_record_a_stage_says_so(project, content, word):
    if content is not None:
        paths.RUN.parent.mkdir()
        paths.RUN.write_text(content)
    with pytest.raises(UserError, match=rf"models/run\.json is {word}.*finetune"), tracked_run():
        pass


def test_a_flow_run_on_unchanged_inputs_is_a_second_linked_run(project):
    with start_run(params_with(learning_rate=0.002), run_name="small") as run:
        run.log_metrics({"train_loss": 3.5}, step=10)
        run.log_metrics({"train_loss": 3.0}, step=20)
    linked = connect().get_run(link_cached_run(run.run_id, "flow-8"))
    assert linked.info.run_id != run.run_id
    assert linked.info.experiment_id == run.experiment_id
    assert linked.info.status == "FINISHED"
    assert linked.data.tags["cached_from"] == run.run_id
    assert linked.data.tags["prefect_flow_run_id"] == "flow-8"
    assert linked.data.params["train.learning_rate"] == "0.002"
    assert linked.data.metrics["train_loss"] == 3.0


def test_the_data_set_is_an_input_of_the_run_and_shows_no_password(project):
    with start_run(params_with()) as run:
        run.log_dataset(json.loads((paths.TOKENS / "manifest.json").read_text()), split="train")
    (entry,) = connect().get_run(run.run_id).inputs.dataset_inputs
    assert entry.dataset.name == "plays.txt-train"
    assert entry.dataset.digest == ("cd" * 32)[:12]
    assert "secret" not in entry.dataset.source


def test_passwords_are_not_shown(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        UserError, match=r"^cannot use the MLflow store http://127\.0\.0\.1:9 \(no answer\); start"
    ) as caught:
        connect()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with start_run(params_with()):
        pass
    said = capsys.readouterr().out
    assert "MLflow at http://127.0.0.1:9 is away (no answer)" in said
    assert "secret" not in said
    assert redact("postgresql://u:p@host/db and http://x/") == "postgresql://host/db and http://x/"


def test_no_secret_of_an_address_reaches_the_run(project):
    address = "https://me:hunter2@host/corpus.txt?part=2&X-Amz-Signature=deadbeef&access_token=hunter3"
    Path("params.yaml").write_text(f"data: {{source: '{address}'}}\n")
    with start_run(parse_params({"data": {"source": address, "sha256": "0" * 64}})) as run:
        run.log_dataset({"source": address, "splits": {"train": {"tokens": 1, "documents": 1, "sha256": "0"}}}, "train")
    stored = connect().get_run(run.run_id)
    written = Path(connect().download_artifacts(run.run_id, "params.yaml")).read_text()
    everything = written + str(stored.to_dictionary())
    assert "host/corpus.txt?part=2" in written
    for secret in ("hunter2", "deadbeef", "hunter3"):
        assert secret not in everything


def test_a_broken_store_is_one_clear_line(bare_project):
    (bare_project / "mlruns").mkdir()
    (bare_project / "mlruns/mlflow.db").write_bytes(b"not a database at all, just some bytes" * 100)
    with pytest.raises(UserError, match="mlflow.db.*not a database.*move that file away"):
        start_run(params_with())


def test_the_project_root_decides_where_the_store_is(bare_project, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_PROJECT_ROOT", str(tmp_path / "other"))
    assert tracking_uri() == f"sqlite:///{tmp_path.as_posix()}/other/mlruns/mlflow.db"
    connect()
    assert (tmp_path / "other/mlruns/mlflow.db").exists()
    assert not (bare_project / "mlruns").exists()


ONE_OF_MANY = """
from gpt2ops.registry.champion import make_champion, registry_lock
from gpt2ops.params.schema import Params
from gpt2ops.tracking.api import start_run
with start_run(Params()) as run:
    run.log_metrics({'train_loss': 1.0}, step=1)
    run.log_text('hello', 'hello.txt')
    try:
        run.client.create_registered_model('gpt2')
    except Exception as error:
        assert 'already exists' in str(error), error
    version = run.client.create_model_version('gpt2', 'file:///nowhere', run.run_id).version
    with registry_lock():
        make_champion(run.client, 'gpt2', str(version))
"""


@pytest.mark.slow
def test_projects_that_start_at_once_on_a_new_store_share_it(tmp_path, monkeypatch):
    """The pipelines themselves, ten of them: `python -m tests.harness.side_by_side`."""
    database = tmp_path / "shared/all.db"
    monkeypatch.delenv("GPT2_PROJECT_ROOT", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    folders = [tmp_path / f"project-{number}" for number in range(3)]
    children = []
    for folder in folders:
        folder.mkdir()
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", ONE_OF_MANY], cwd=folder, env=environment_with_project(), stderr=subprocess.PIPE
            )
        )
    errors = [child.communicate()[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], errors
    client = connect()
    runs = client.search_runs([experiment_id(client, "gpt2")])
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    # Beside the file, not in the folder of whoever was first.
    artifacts = {Path(run.info.artifact_uri.removeprefix("file://")).parent.parent for run in runs}
    assert artifacts == {tmp_path / "shared/all-artifacts"}
    versions = client.search_model_versions("name = 'gpt2'")
    assert sorted(str(entry.version) for entry in versions) == ["1", "2", "3"]
    model = client.get_registered_model("gpt2")
    history = [change["version"] for change in json.loads(model.tags["champion_history"])]
    assert sorted(history) == ["1", "2", "3"]
    assert str(model.aliases["champion"]) == history[-1]
    with sqlite3.connect(database) as store:
        assert store.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_relative_store_is_the_projects_also_in_a_flow_runs_folder(bare_project, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine/all.db")
    monkeypatch.setenv("GPT2_PROJECT_ROOT", str(tmp_path))
    assert tracking_uri() == f"sqlite:///{tmp_path.as_posix()}/mine/all.db"


@pytest.mark.parametrize("name", ["a#b;c&d", "it's + \u00e9", "100%"])
def test_a_folder_of_any_name_keeps_its_store_inside(name, bare_project, tmp_path, monkeypatch):
    folder = tmp_path / "outer" / name
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with start_run(params_with()) as run:
        run.log_text("hello", "hello.txt")
    assert (folder / "mlruns/mlflow.db").is_file()
    assert [path.name for path in (tmp_path / "outer").iterdir()] == [name]
    assert Path(connect().download_artifacts(run.run_id, "hello.txt", str(folder))).read_text() == "hello"


@pytest.mark.parametrize(("name", "found"), [("what?", "?"), ("100%41", "%41")])
def test_a_folder_that_mlflow_takes_for_another_is_refused_and_nothing_is_written(
    name, found, bare_project, tmp_path, monkeypatch
):
    folder = tmp_path / "outer" / name
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=rf"its path has '{re.escape(found)}'; rename that folder"):
        start_run(params_with())
    assert [path.name for path in (tmp_path / "outer").rglob("*")] == [name]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    with start_run(params_with()):
        pass
    assert (tmp_path / "elsewhere.db").is_file()


def test_a_folder_whose_path_sqlite_cannot_open_is_named_by_the_run_and_by_doctor(bare_project, tmp_path, monkeypatch):
    folder = tmp_path
    while len(bytes(folder / "mlruns/mlflow.db")) <= SQLITE_PATH_BYTES:
        folder /= "f" * 50
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=rf"bytes, and SQLite takes {SQLITE_PATH_BYTES}; .*shorter"):
        start_run(params_with())
    (finding,) = safely("mlflow", lambda: store(folder))
    assert (finding.state, "SQLite" in finding.text) == (WRONG, True)
    assert list(folder.iterdir()) == []
    longest = Path("/" + "f" * (SQLITE_PATH_BYTES - 1))
    assert uri_of(longest).endswith(longest.as_posix())


@pytest.mark.skipif(os.name == "nt", reason="Unix's limit")
def test_the_limit_is_that_of_sqlite_itself(tmp_path):
    folder = tmp_path
    while (room := SQLITE_PATH_BYTES - len(bytes(folder)) - len("//f")) > 100:
        folder /= "f" * min(100, room - 1)
    folder.mkdir(parents=True)
    longest = folder / ("f" * (SQLITE_PATH_BYTES - len(bytes(folder)) - 1))
    with contextlib.closing(sqlite3.connect(longest)) as connection:
        connection.execute("CREATE TABLE t (a)")
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(f"{longest}f").execute("CREATE TABLE t (a)")


def test_who_shares_a_store_shares_its_locks(tmp_path, monkeypatch):
    def lock(folder, uri):
        monkeypatch.setenv("GPT2_PROJECT_ROOT", str(tmp_path / folder))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return store_lock("register")

    for uri in (f"sqlite:///{tmp_path}/all.db", "http://me:secret@127.0.0.1:5000"):
        assert lock("one", uri) == lock("other", uri)
        assert "secret" not in str(lock("one", uri))
    assert lock("one", "http://127.0.0.1:5000") != lock("one", "http://127.0.0.1:5001")
    assert lock("one", "") != lock("other", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert lock("one", "http://127.0.0.1:5000").is_relative_to(tmp_path / "mine"), "another user may hold one elsewhere"


def environment_with_project():
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def test_a_copied_project_keeps_its_artifacts_to_itself(project, tmp_path, monkeypatch):
    with start_run(params_with()) as run:
        run.log_text("hello", "hello.txt")
    copy = tmp_path / "copy"
    project.rename(copy)
    monkeypatch.chdir(copy)
    assert connect().get_run(run.run_id).info.artifact_uri.startswith((copy / "mlruns/artifacts").as_uri())
    with start_run(params_with()) as second:
        second.log_text("hello", "hello.txt")
    assert (copy / "mlruns/artifacts" / second.run_id / "artifacts/hello.txt").exists()
    assert not project.exists()


@pytest.mark.slow
def test_rows_are_written_when_the_process_ends_without_finish(project):
    code = (
        "import sys; from gpt2ops.params.schema import Params; from gpt2ops.tracking.api import start_run\n"
        "run = start_run(Params()); print(run.run_id); run.log_metrics({'train_loss': 1.0}, step=1); sys.exit(1)"
    )
    child = subprocess.run([sys.executable, "-c", code], env=environment_with_project(), capture_output=True, text=True)
    run_id = child.stdout.split()[0]
    assert connect().get_run(run_id).data.metrics["train_loss"] == 1.0


@pytest.mark.slow
def test_tracking_costs_under_one_percent_of_small_steps(project):
    """500 rows of 8 metrics, as of 5,000 steps of 20 ms (100 s) with a row every 10 steps."""
    run = start_run(params_with())
    started = time.process_time()  # of all threads: what the training can lose to it
    for step in range(500):
        run.log_metrics({f"metric_{i}": step + i / 10 for i in range(8)}, step=step)
        if step % 15 == 0:  # a flush each 3 s
            run.flush()
    run.flush()
    assert time.process_time() - started < 1.0
    run.finish()
