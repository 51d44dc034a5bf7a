"""`gpt2 gc`: each rule takes what it is for and nothing beside it, and a second call finds nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mlflow.entities import Metric

from gpt2core.config import GPTConfig
from gpt2core.data.writer import write_tokens
from gpt2core.model import GPT
from gpt2core.storage.files import write_json
from gpt2core.training.checkpoint import save_checkpoint
from gpt2ops.corpora.http import partial_name
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.registry.versions import LOGGED_TAGS, VERSIONS_TAG
from gpt2ops.store.client import connect, experiment_id, fluent_mlflow
from gpt2ops.training.fingerprint import checkpoints_of, fingerprint_of
from tests.support.maintained import Commands, copy_of, in_project, write_project

LONG_AGO = time.time() - 86400
PUBLISHED, ENDED, UNFINISHED = (letter * 12 for letter in "abc")  # folders of runs


def flow_run(number: int) -> str:
    return f"0f0e0d0c-1111-4222-8333-{number:012}"


@pytest.fixture
def gpt2(monkeypatch, capsys) -> Commands:
    return Commands(monkeypatch, capsys)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("template")
    write_project(root)
    with pytest.MonkeyPatch.context() as patch:
        in_project(root, patch)
        experiment_id(connect(), "gpt2")
        shares = {"train": 0.8, "val": 0.1, "test": 0.1}
        write_tokens(root / paths.TOKENS, ["Many words of a text. "] * 40, source="t", shares=shares, split_by="tokens")
    return root


@pytest.fixture
def project(template, tmp_path, monkeypatch) -> Path:
    root = copy_of(template, tmp_path, monkeypatch)
    connect()
    return root


def listed(gpt2: Commands, project: Path, *flags: str) -> list[str]:
    result = gpt2("gc", "--json", *flags)
    assert result.code == 0, result.err
    return sorted(Path(item["path"]).relative_to(project).as_posix() for item in result.json["garbage"])


def assert_collected(gpt2: Commands, project: Path, expected: list[str], *flags: str) -> None:
    """Named first, there still; removed with --yes; and then there is nothing more. All else stays."""
    before = {path for path in project.rglob("*") if ".stage.lock" not in path.name and "mlflow.db" not in path.name}
    assert listed(gpt2, project, *flags) == sorted(expected)
    assert all((project / name).exists() for name in expected)
    assert listed(gpt2, project, "--yes", *flags) == sorted(expected)
    gone = {path for path in before if not path.exists()}
    assert gone == {
        path for path in before if any(path == project / name or project / name in path.parents for name in expected)
    }
    assert listed(gpt2, project, "--yes", *flags) == []
    assert gpt2("gc", *flags).out == "nothing to remove\n"


def make(path: Path, content: str = "x" * 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_what_killed_writes_left_goes_but_not_what_is_written_now_or_holds_the_original(project, gpt2) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    make(project / f"reports/.a.json.{ended.pid}.partial")
    make(project / "models/checkpoints/ab/damaged-step-00000004/model.safetensors")
    make(project / "models/best/config.json")
    make(project / "models/.best.old/config.json")
    cut = make(project / "data/.raw.partial/text.txt")
    for path in (cut, cut.parent):
        os.utime(path, (LONG_AGO, LONG_AGO))
    # These stay: a download goes on where it stopped, a writer is alive, an original would be lost.
    make(project / "data/.downloads/0123456789abcdef.partial")
    make(project / f"reports/.b.json.{os.getpid()}.partial")
    make(project / "data/.tokens.partial/stream.bin")
    make(project / "reports/.plots.old/loss.png")
    expected = [
        f"reports/.a.json.{ended.pid}.partial", "models/checkpoints/ab/damaged-step-00000004", "models/.best.old",
        "data/.raw.partial",
    ]  # fmt: skip
    assert_collected(gpt2, project, expected)


def test_a_part_of_a_download_goes_unless_the_next_run_would_resume_it(project, gpt2) -> None:
    url = "https://host/a.txt"
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("source: bundled", f"source: {url}"))
    resumable = make(project / "data/.downloads" / partial_name(url))
    given_up = make(project / "data/.downloads" / partial_name("https://host/b.txt"))
    for path in (resumable, given_up):
        os.utime(path, (LONG_AGO, LONG_AGO))
    make(project / "data/.downloads" / partial_name("https://host/arriving.txt"))
    assert_collected(gpt2, project, [given_up.relative_to(project).as_posix()])
    assert resumable.exists()


def save_run(folder: Path, fingerprint: dict[str, object], step: int, finished: str | None, run_id: str = "") -> str:
    torch.manual_seed(0)
    state = {"step": step, "fingerprint": fingerprint, "finished": finished, "extra": {"run_id": run_id}}
    model = GPT(GPTConfig(32, 16, n_layer=1, n_head=2, n_embd=8))
    save_checkpoint(folder / f"step-{step:08d}", model, {"moment": torch.zeros(1)}, state)
    return f"models/checkpoints/{folder.name}"


def test_checkpoints_of_other_runs_go_once_they_have_ended_and_unfinished_ones_only_when_asked(project, gpt2) -> None:
    params = load_params()
    config = GPTConfig.from_preset(params.model.preset, **params.model.overrides).as_dict()
    sha256 = json.loads((project / paths.TOKENS / "manifest.json").read_text())["sha256"]
    own = fingerprint_of(params, config, sha256, "bf16")
    other = {**own, "seed": 7}
    top = project / paths.CHECKPOINTS
    save_run(project / checkpoints_of(own), own, 9, "max_steps")  # what params.yaml describes
    save_run(top / PUBLISHED, other, 9, "max_steps", run_id="the-run")  # what models/best came from
    write_json(project / paths.RUN, {"run_id": "the-run"})
    ended = save_run(top / ENDED, other, 9, "target_loss")
    unfinished = save_run(top / UNFINISHED, other, 4, None)
    assert_collected(gpt2, project, [ended])
    assert_collected(gpt2, project, [unfinished], "--checkpoints")


def test_checkpoints_stay_where_params_cannot_be_read_and_gc_says_so(project, gpt2) -> None:
    save_run(project / paths.CHECKPOINTS / ENDED, {}, 9, "max_steps")
    (project / "params.yaml").write_text("run: [")
    result = gpt2("gc", "--json")
    assert result.json["garbage"] == []
    assert "checkpoints are skipped: " in result.json["notes"][0]


def workspace(project: Path, name: str) -> Path:
    folder = project / "workspaces" / name
    make(folder / ".dvc/config.local")
    make(folder / "models/checkpoints/ab/step-00000004/model.safetensors")
    return folder


def test_folders_of_flow_runs_go_when_the_run_has_ended_and_not_while_it_works(project, gpt2) -> None:
    names = [flow_run(number) for number in range(5)]
    finished, working = workspace(project, names[0]), workspace(project, names[1])
    workspace(project, names[2])  # unfinished
    half_made, just_made = project / "workspaces" / names[3], project / "workspaces" / names[4]
    write_json(finished / paths.RUN, {"run_id": "1"})
    write_json(finished / paths.REGISTERED, {"run_id": "1"})
    make(finished / paths.REPORT_PDF)
    half_made.mkdir()
    just_made.mkdir()
    for path in (finished / paths.REGISTERED, finished / paths.REPORT_PDF, half_made):
        os.utime(path, (LONG_AGO, LONG_AGO))
    lock = working / "logs/.stage.lock"
    lock.parent.mkdir()
    with FileLock(lock):
        assert_collected(gpt2, project, [f"workspaces/{names[0]}", f"workspaces/{names[3]}"])
        assert_collected(gpt2, project, [f"workspaces/{names[2]}"], "--checkpoints")


def start(name: str) -> str:
    client = connect()
    run = client.create_run(experiment_id(client, "gpt2"), run_name=name)
    client.log_text(run.info.run_id, "x" * 5000, "note.txt")
    client.log_metric(run.info.run_id, "loss", 2.5, timestamp=1000, step=3)
    return str(run.info.run_id)


def test_runs_deleted_in_mlflow_go_for_good_but_not_those_of_a_registered_version(project, gpt2) -> None:
    client = connect()
    kept, deleted, champion = start("kept"), start("deleted"), start("champion")
    client.create_registered_model("gpt2")
    client.create_model_version("gpt2", f"runs:/{champion}/model", run_id=champion)
    for run_id in (deleted, champion):
        client.delete_run(run_id)
    assert_collected(gpt2, project, [f"mlruns/artifacts/{deleted}"])
    assert client.get_run(kept).info.lifecycle_stage == "active"
    assert client.get_run(champion).info.lifecycle_stage == "deleted"
    client.restore_run(champion)
    with pytest.raises(Exception, match="not found"):
        client.get_run(deleted)


def test_artifacts_of_runs_that_the_store_does_not_know_go_but_no_versions_and_no_folder_of_a_user(
    project, gpt2
) -> None:
    known = start("known")
    unknown = "0123456789abcdef" * 2
    make(project / f"mlruns/artifacts/{unknown}/artifacts/x.txt")
    make(project / "mlruns/artifacts/models/m-0123/artifacts/MLmodel")
    make(project / "mlruns/artifacts/my notes/x.txt")
    version = make(project / "mlruns/artifacts/models/m-4567/artifacts/MLmodel").parent
    client = connect()
    client.create_registered_model("gpt2")
    client.create_model_version("gpt2", version.as_uri())
    assert_collected(gpt2, project, [f"mlruns/artifacts/{unknown}", "mlruns/artifacts/models/m-0123"])
    assert (project / f"mlruns/artifacts/{known}/artifacts/note.txt").exists()


def log_model(run_id: str, tags: dict[str, str] | None) -> str:
    """A model logged to the run, as far as its rows and one file of it; returns its folder."""
    client = connect()
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name="gpt2", source_run_id=run_id, tags=tags)
    make(Path(model.artifact_location.removeprefix("file://")) / "MLmodel")
    return f"mlruns/artifacts/models/{model.model_id}"


def register(model: str, run_id: str) -> None:
    client = connect()
    client.create_registered_model("gpt2")
    with fluent_mlflow():
        client.create_model_version("gpt2", f"models:/{Path(model).name}", run_id=run_id)


def test_models_that_a_stage_logged_and_never_registered_go_but_none_of_a_user_a_version_or_a_stage_at_work(
    project, gpt2
) -> None:
    ended, working, gone = start("ended"), start("working"), start("gone")
    left = log_model(ended, LOGGED_TAGS)
    log_model(ended, None)  # a user's own
    was_version = log_model(ended, {**LOGGED_TAGS, VERSIONS_TAG: "[]"})
    version = log_model(ended, LOGGED_TAGS)
    client = connect()
    register(version, ended)
    begun, of_deleted = log_model(working, LOGGED_TAGS), log_model(gone, LOGGED_TAGS)
    client.delete_run(gone)
    lock = project / f"mlruns/spool/{working}.1.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        assert listed(gpt2, project) == sorted([left, f"mlruns/artifacts/{gone}"])
    lock.unlink(missing_ok=True)
    assert listed(gpt2, project, "--yes") == sorted([left, begun, f"mlruns/artifacts/{gone}"])
    assert listed(gpt2, project) == []
    assert [(project / name).exists() for name in (was_version, version)] == [True, True]
    assert [(project / name).exists() for name in (left, begun, of_deleted)] == [False] * 3
    client.get_logged_model(Path(version).name)
    with pytest.raises(Exception, match="not found"):
        client.get_logged_model(Path(left).name)


def test_after_the_database_was_moved_away_nothing_that_it_knows_is_offered(project, gpt2) -> None:
    champion, client = start("champion"), connect()
    model = log_model(champion, LOGGED_TAGS)
    register(model, champion)
    client.set_registered_model_alias("gpt2", "champion", "1")
    waits = make(project / f"mlruns/spool/{champion}.jsonl", json.dumps(["loss", 2.25, 2000, 4]) + "\n")
    away = project / "away"
    away.mkdir()
    for file in (project / "mlruns").glob("mlflow.db*"):
        file.rename(away / file.name)

    # The next run makes a new store: a process of its own, for MLflow keeps the old file open in this one.
    make_store = "from gpt2ops.store.client import connect, experiment_id; experiment_id(connect(), 'gpt2')"
    subprocess.run([sys.executable, "-c", make_store], check=True, capture_output=True)
    unknown = "0123456789abcdef" * 2
    make(project / f"mlruns/artifacts/{unknown}/artifacts/x.txt")
    result = gpt2("gc", "--json", "--yes")
    assert [Path(item["path"]).name for item in result.json["garbage"]] == [unknown]
    (note,) = result.json["notes"]
    assert note.startswith("3 files or folders in mlruns/ are older than its database")
    assert waits.exists()

    for file in (project / "mlruns").glob("mlflow.db*"):
        file.unlink()
    for file in away.iterdir():
        file.rename(project / "mlruns" / file.name)
    assert (project / model / "artifacts/MLmodel").exists()
    assert (project / f"mlruns/artifacts/{champion}/artifacts/note.txt").exists()
    result = gpt2("gc", "--json")
    assert (result.json["garbage"], result.json["notes"]) == ([], [])


def test_spooled_metrics_go_once_the_store_has_every_one_of_them(project, gpt2) -> None:
    delivered, waiting, tagged, deleted = start("delivered"), start("waiting"), start("tagged"), "0" * 32
    there, missing = ["loss", 2.5, 1000, 3], ["loss", 2.25, 2000, 4]
    spool = project / "mlruns/spool"
    make(spool / f"{delivered}.jsonl", json.dumps(there) + "\n")
    make(spool / f"{deleted}.jsonl", json.dumps(there) + "\n")
    make(spool / f"{waiting}.jsonl", f"{json.dumps(there)}\n{json.dumps(missing)}\n[half a li")
    tags = {"do": "tags", "what": "tags", "tags": {}}
    make(spool / f"{tagged}.jsonl", f"\n{json.dumps(there)}\n{json.dumps(tags)}")
    make(spool / deleted / "00000001/note.txt", "a copy of a file")
    with FileLock(spool / f"{delivered}.lock"):  # a stage writes into that run
        assert listed(gpt2, project) == [f"mlruns/spool/{deleted}", f"mlruns/spool/{deleted}.jsonl"]
    expected = [f"mlruns/spool/{deleted}", *(f"mlruns/spool/{name}.jsonl" for name in (delivered, deleted))]
    assert_collected(gpt2, project, expected)
    said = {line["text"] for line in gpt2("doctor", "--json").json if line["area"] == "metrics"}
    assert said == {
        f"1 metrics, tags or files of the run {name[:8]} wait in mlruns/spool" for name in (waiting, tagged)
    }
    connect().log_batch(waiting, metrics=[Metric("loss", 2.25, 2000, 4)])
    assert listed(gpt2, project) == [f"mlruns/spool/{waiting}.jsonl"]


def test_a_run_that_mlflow_has_yet_to_hear_of_keeps_what_waits_for_it(project, gpt2) -> None:
    known, begun, spool = start("known"), "b" * 32, project / "mlruns/spool"
    connect().log_batch(known, metrics=[Metric("loss", 2.5, 1000, 3)])
    make(spool / f"{begun}.run.json", "{}")
    make(spool / f"{begun}.jsonl", json.dumps(["loss", 2.5, 1000, 3, "step"]) + "\n")
    make(spool / f"{known}.jsonl", json.dumps(["loss", 2.5, 1000, 3, "step"]) + "\n")  # its step is not known yet
    assert listed(gpt2, project) == []
    waiting = {line["text"] for line in gpt2("doctor", "--json").json if line["area"] == "metrics"}
    assert waiting == {
        f"2 metrics, tags or files of the run {begun[:8]} wait in mlruns/spool",
        f"1 metrics, tags or files of the run {known[:8]} wait in mlruns/spool",
    }


def test_nothing_is_removed_while_a_stage_is_at_work_but_looking_is_allowed(project, gpt2) -> None:
    make(project / "models/checkpoints/ab/damaged-step-00000004/x")
    (project / "logs/.stage.holder").write_text("the stage finetune (process 7)")
    with FileLock(project / "logs/.stage.lock"):
        result = gpt2("gc", "--yes")
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith("gpt2: error: the stage finetune (process 7) is writing in this folder; wait")
        assert listed(gpt2, project) == ["models/checkpoints/ab/damaged-step-00000004"]
    assert (project / "models/checkpoints/ab/damaged-step-00000004/x").exists()


def test_a_store_that_cannot_be_read_keeps_nothing_else_from_being_cleaned(project, gpt2) -> None:
    (project / "mlruns/mlflow.db").write_bytes(b"noise" * 1000)
    make(project / f"mlruns/artifacts/{'ab' * 16}/artifacts/x.txt")
    make(project / "models/checkpoints/ab/damaged-step-00000004/x")
    result = gpt2("gc", "--json", "--yes")
    assert [item["kind"] for item in result.json["garbage"]] == ["leftovers"]
    assert [note.split(" are skipped")[0] for note in result.json["notes"]] == ["deleted runs", "models", "artifacts"]
    assert (project / f"mlruns/artifacts/{'ab' * 16}/artifacts/x.txt").exists()


def test_without_yes_sizes_are_shown_and_dvcs_cache_is_dvcs(project, gpt2) -> None:
    make(project / "models/checkpoints/ab/damaged-step-00000004/x", "x" * 2_000_000)
    make(project / ".dvc/cache/files/md5/ab/cdef")
    result = gpt2("gc")
    assert "2.0 MB  models/checkpoints/ab/damaged-step-00000004  a damaged checkpoint" in result.out
    assert result.out.endswith("1 to remove, 2.0 MB; nothing was removed: `gpt2 gc --yes` does it\n")
    assert "`dvc gc --workspace`" in gpt2("gc", "--help").out
