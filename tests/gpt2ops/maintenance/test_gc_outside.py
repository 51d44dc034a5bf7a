"""`gpt2 gc --yes` deletes nothing outside the project, nothing behind a link, and nothing that this product never made.

Each case makes something that looks like garbage where it is not this project's to remove.
"""

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gpt2core.storage.files import write_json
from gpt2ops.store.client import connect, experiment_id
from tests.support.maintained import Commands, copy_of, project_with_store

LONG_AGO = time.time() - 86400
RUN = "0123456789abcdef" * 2
ENDED, STARTED = "a" * 12, "b" * 12  # folders of checkpoints, by their runs
FLOW_RUN = "0f0e0d0c-1111-4222-8333-444455556666"


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return project_with_store(tmp_path_factory.mktemp("template"))


@pytest.fixture
def project(template, tmp_path, monkeypatch) -> Path:
    return copy_of(template, tmp_path, monkeypatch)


@pytest.fixture
def outside(tmp_path) -> Path:
    """What looks like garbage, of every kind, beside the project: all of it somebody's only copy."""
    there = tmp_path / "outside"
    ended = subprocess.Popen(["true"])
    ended.wait()
    write_json(
        there / f"ck/{ENDED}/step-00000009/trainer.json", {"step": 9, "finished": "max_steps", "fingerprint": {}}
    )
    for name in (
        f"ck/{ENDED}/damaged-step-00000004/x",
        f"ck/{STARTED}/x",
        "models/best/config.json",
        "models/.best.old/x",
        "models/m-0123/artifacts/MLmodel",
        f"{RUN}/artifacts/x.txt",
        f"{RUN}.jsonl",
        f".a.json.{ended.pid}.partial",
        ".raw.partial/text.txt",
        "raw/x",
        ".raw.old/x",
        f"{FLOW_RUN}/notes.txt",
    ):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("the only copy")
    shutil.copytree(there / "ck", there / "models/checkpoints")
    for path in there.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return there


def link(name: str, target: str = "") -> Callable[[Path, Path], None]:
    def make(project: Path, outside: Path) -> None:
        place = project / name
        if place.is_dir():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(outside / target)

    return make


LINKS = {
    "models": "models",
    "models/checkpoints": "ck",
    f"models/checkpoints/{ENDED}": f"ck/{ENDED}",
    "models/.best.old": "models/.best.old",
    "models/mine": "models",
    "workspaces": "",
    f"workspaces/{FLOW_RUN}": FLOW_RUN,
    "data": "",
    "data/raw": "",
    "reports": "",
    "reports/mine": "",
    "logs": "",
    "mlruns/artifacts": "",
    f"mlruns/artifacts/{RUN}": RUN,
    "mlruns/artifacts/models": "models",
    "mlruns/artifacts/models/m-0123": "models/m-0123",
    "mlruns/spool": "",
    f"mlruns/spool/{RUN}": RUN,
    f"mlruns/spool/{RUN}.jsonl": f"{RUN}.jsonl",
}


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
        if ".stage.lock" not in path.name
    }


def collect_all(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    result = Commands(monkeypatch, capsys)("gc", "--yes", "--checkpoints", "--json")
    assert result.code == 0, result.err
    return [item["path"] for item in result.json["garbage"]]


@pytest.mark.parametrize("name", LINKS)
def test_nothing_goes_that_lies_behind_a_link_and_the_link_stays(name, project, outside, monkeypatch, capsys) -> None:
    before = contents(outside)
    link(name, LINKS[name])(project, outside)
    assert collect_all(project, monkeypatch, capsys) == []
    assert contents(outside) == before
    assert (project / name).is_symlink()


def test_the_same_things_go_where_they_lie_in_the_project_itself(project, outside, monkeypatch, capsys) -> None:
    """Else the test above would prove nothing."""
    for name, target in LINKS.items():
        if (outside / target).is_dir():
            shutil.copytree(outside / target, project / name, dirs_exist_ok=True)
        else:
            shutil.copy(outside / target, project / name)
    for path in project.rglob("*"):
        # In mlruns, what is older than the database is of an earlier one.
        os.utime(path, None if project / "mlruns" in path.parents else (LONG_AGO, LONG_AGO))
    gone = collect_all(project, monkeypatch, capsys)
    for name in (
        f"models/checkpoints/{ENDED}", f"models/checkpoints/{STARTED}", "models/.best.old", f"workspaces/{FLOW_RUN}",
        "data/.raw.partial", "reports/.raw.partial", "logs/.raw.partial", f"mlruns/artifacts/{RUN}",
        "mlruns/artifacts/models/m-0123", f"mlruns/spool/{RUN}", f"mlruns/spool/{RUN}.jsonl",
    ):  # fmt: skip
        assert str(project / name) in gone


def test_what_is_behind_a_link_is_said(project, outside, monkeypatch, capsys) -> None:
    link("models/checkpoints", "ck")(project, outside)
    out = Commands(monkeypatch, capsys)("gc").out
    assert "note: models/checkpoints is a link: its target may belong to another project too" in out


def test_links_within_what_goes_are_not_followed(project, outside, monkeypatch, capsys) -> None:
    before = contents(outside)
    damaged = project / "models/checkpoints" / ENDED / "damaged-step-00000004"
    damaged.mkdir(parents=True)
    (damaged / "folder").symlink_to(outside)
    (damaged / "file").symlink_to(outside / f"{RUN}.jsonl")
    assert collect_all(project, monkeypatch, capsys) == [str(damaged.parent)]
    assert not damaged.exists()
    assert contents(outside) == before


def test_what_a_person_put_there_stays(project, monkeypatch, capsys) -> None:
    own = ["models/checkpoints/my copy/step-00000009/trainer.json", "models/checkpoints/notes/x", "workspaces/thesis/x"]
    own += [".env.old", "env/x", "mlruns/artifacts/mine/x", "mlruns/spool/read me"]
    for name in own:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text('{"step": 9, "finished": "max_steps"}')
    for path in (*(project / "workspaces").rglob("*"), project / "workspaces/thesis"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert collect_all(project, monkeypatch, capsys) == []
    assert all((project / name).exists() for name in own)


@pytest.mark.parametrize("missing", ["params.yaml", "dvc.yaml"])
def test_outside_of_a_project_it_looks_at_nothing(missing, project, outside, monkeypatch, capsys) -> None:
    """Somebody's home may well have folders called models, workspaces and data."""
    shutil.copytree(outside, project / "workspaces")
    (project / missing).unlink()
    result = Commands(monkeypatch, capsys)("gc", "--yes", "--checkpoints")
    assert result.is_one_line(f"{project} is no project (no {missing})")
    assert contents(project / "workspaces") == contents(outside)


def places(project: Path, outside: Path, other: str) -> list[str]:
    artifacts = project / "mlruns/artifacts"
    named = {
        "elsewhere": (outside / RUN / "artifacts").as_uri(),
        "a path": f"{outside}/{RUN}/artifacts",
        "dots": f"{artifacts.as_uri()}/../../../outside/{RUN}/artifacts",
        "coded dots": f"{artifacts.as_uri()}/%2e%2e/%2e%2e/%2e%2e/outside/{RUN}/artifacts",
        "coded slashes": f"{artifacts.as_uri()}/..%2F..%2F..%2Foutside/{RUN}/artifacts",
        "a host": f"file://host{outside}/{RUN}/artifacts",
        "all artifacts": artifacts.as_uri(),
        "all artifacts as one": f"{artifacts.as_uri()}/artifacts",
        "all models": f"{artifacts.as_uri()}/models",
        "another run": f"{artifacts.as_uri()}/{other}/artifacts",
        "the project": project.as_uri(),
        "relative": "mlruns/artifacts/../../models",
        "a loop": f"{artifacts.as_uri()}/loop/artifacts",
        "nothing": "",
    }
    return list(named.values())


def test_a_store_that_names_other_places_for_a_deleted_run_gets_none_of_them_removed(
    project, outside, monkeypatch, capsys
) -> None:
    client = connect()
    experiment = experiment_id(client, "gpt2")
    kept = str(client.create_run(experiment).info.run_id)
    client.log_text(kept, "kept", "note.txt")
    artifacts = project / "mlruns/artifacts"
    (artifacts / "models/m-4567/artifacts").mkdir(parents=True)
    (artifacts / "artifacts/x").mkdir(parents=True)
    (artifacts / "loop").symlink_to("loop")
    before = contents(outside), contents(artifacts)
    lies = [(table, place) for table in ("runs", "models") for place in places(project, outside, kept)]
    runs = [str(client.create_run(experiment).info.run_id) for _ in lies]
    for run_id in runs:
        client.delete_run(run_id)
    with closing(sqlite3.connect(project / "mlruns/mlflow.db")) as store, store:
        log_model(store, "m-4567", kept, experiment, "")
        for run_id, (table, place) in zip(runs, lies, strict=True):
            if table == "runs":
                store.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (place, run_id))
            else:
                log_model(store, f"m-{run_id}", run_id, experiment, place)
    gone = collect_all(project, monkeypatch, capsys)
    assert sorted(Path(path).name for path in gone) == sorted(runs)
    assert (contents(outside), contents(artifacts)) == before


def log_model(store: sqlite3.Connection, model: str, run_id: str, experiment: str, place: str) -> None:
    values = {
        "model_id": model, "experiment_id": experiment, "name": "gpt2", "artifact_location": place, "source_run_id":
        run_id, "creation_timestamp_ms": 0, "last_updated_timestamp_ms": 0, "status": 2, "lifecycle_stage": "active",
    }  # fmt: skip
    marks = ", ".join("?" * len(values))
    store.execute(f"INSERT INTO logged_models ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))


def test_a_lock_that_is_a_link_empties_no_file(project, outside, monkeypatch, capsys) -> None:
    note = outside / "raw/x"
    (project / "logs/.stage.lock").symlink_to(note)
    Commands(monkeypatch, capsys)("gc", "--yes")
    Commands(monkeypatch, capsys)("doctor")
    assert note.read_text() == "the only copy"
