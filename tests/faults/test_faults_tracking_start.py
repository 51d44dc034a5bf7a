"""Stages that start while MLflow is away: they work, and when it is back it has all of it, once."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2core.errors import UserError
from gpt2core.storage.files import read_json, write_json
from gpt2ops.params.schema import parse_params
from gpt2ops.pipeline import paths
from gpt2ops.store.client import connect, experiment_id
from gpt2ops.tracking.api import start_run, tracked_run
from gpt2ops.tracking.journal import NEXT, Journal, Point, plan_of, read_records, spool
from gpt2ops.tracking.link import BEGUN_AS_TAG
from gpt2ops.tracking.restored_runs import stored_run_id
from tests.support.mlflow_server import Proxy, steps
from tests.support.tracked_project import history, runs_of, spooled

ROOT = Path(__file__).parents[2]


class LostAnswer(Proxy):
    """Goes away after the request that creates a run, before its answer."""

    lost = False

    def _pass_on(self, source: socket.socket, target: socket.socket, delayed: bool) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                if delayed:
                    self.lost = self.lost or b"/runs/create" in block
                elif self.lost:
                    self.close()
                    return
                target.sendall(block)


@pytest.fixture
def line(server, monkeypatch, request) -> Iterator[Proxy]:
    """The way to the server, cut; and an experiment of the test's own."""
    proxy = Proxy(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
    proxy.close()
    yield proxy
    proxy.close()


def own(request: pytest.FixtureRequest, **train: Any) -> Any:
    return parse_params({"run": {"experiment": request.node.name}, "train": train})


@pytest.mark.slow
def test_a_training_that_started_in_the_dark_is_whole_when_the_server_is_back(line, request, capsys) -> None:
    before = time.time()
    run = start_run(own(request, learning_rate=0.002), run_name="in the dark")
    started_at, early_id = time.time(), run.run_id
    for step in range(20):
        run.log_metrics({"train_loss": step / 2}, step=step)
        if step == 5:
            run.secure()
        if step == 10:
            assert run.flush() is False
            line.open()
            assert run.flush() is True
    note = Path("note.txt")
    note.write_text("hello")
    run.log_artifact(note, "logs")
    run.log_dataset(json.loads((paths.TOKENS / "manifest.json").read_text()), split="train")
    run.finish()
    (stored,) = runs_of(request.node.name)
    assert (stored.info.run_name, stored.info.status) == ("in the dark", "FINISHED")
    assert before - 1 < stored.info.start_time / 1000 < started_at + 1
    assert stored.data.params["train.learning_rate"] == "0.002"
    assert stored.data.tags["data_sha256"] == "ab" * 32
    assert stored.data.tags[BEGUN_AS_TAG] == early_id
    assert len(stored.inputs.dataset_inputs) == 1
    assert any(key.startswith("system/cpu") for key in stored.data.metrics)
    assert {item.path for item in connect().list_artifacts(stored.info.run_id)} == {"dvc.lock", "logs", "params.yaml"}
    assert history(run, "train_loss") == steps(20)
    assert spooled() == []
    said = capsys.readouterr().out
    assert said.count(f"MLflow at {line.address} is away (no answer); the training continues") == 1
    assert f"the run in the dark is {stored.info.run_id} there" in said


@pytest.mark.slow
def test_all_stages_of_a_run_in_the_dark_are_one_run_afterwards(line, request, capsys) -> None:
    paths.PARAMS.write_text(f"run:\n  experiment: {request.node.name}\n")
    with start_run(own(request), run_name="dark") as run:
        run.log_metrics({"train_loss": 2.5}, step=1)
    write_json(paths.RUN, run.record("gpt2"))
    with tracked_run() as evaluation:
        evaluation.log_metrics({"evaluate/test_loss": 3.5})
    refused = pytest.raises(UserError, match=r"^cannot use the MLflow store http.*\(no answer\); start its server")
    with refused, tracked_run(wait=False):  # what cannot be done later
        pass
    line.open()
    with tracked_run(wait=False) as registration:
        registration.set_tags({"gate": "passed"})
    (stored,) = runs_of(request.node.name)
    assert stored.info.run_id == registration.run_id
    early_id = read_json(paths.RUN)["run_id"]  # which DVC has recorded, so that it stays
    assert early_id != stored.info.run_id
    assert stored_run_id(early_id) == stored.info.run_id
    assert (stored.data.metrics["train_loss"], stored.data.metrics["evaluate/test_loss"]) == (2.5, 3.5)
    assert (stored.data.tags["gate"], stored.info.status) == ("passed", "FINISHED")
    assert spooled() == []
    assert "what waited for MLflow run dark has been sent" in capsys.readouterr().out


@pytest.mark.slow
def test_one_that_is_killed_and_starts_again_in_the_dark_is_one_run(line, request) -> None:
    code = (
        "import os, signal, sys; from gpt2ops.params.schema import parse_params\n"
        "from gpt2ops.tracking.api import start_run\n"
        "params = parse_params({'run': {'experiment': sys.argv[1]}})\n"
        "run = start_run(params, 'killed', resume_key='k'); print(run.run_id, flush=True)\n"
        "for step in range(5): run.log_metrics({'train_loss': step / 2}, step=step)\n"
        "run.secure(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", code, request.node.name], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    known = next(line for line in child.stdout.splitlines() if len(line) == 32)
    with start_run(own(request), resume_key="k") as again:  # before its first checkpoint: by its key
        assert again.run_id == known
        for step in range(3, 8):
            again.log_metrics({"train_loss": step / 2}, step=step)
    with start_run(own(request), resume_key="k") as other:  # that one has finished
        assert other.run_id != known
    line.open()
    with start_run(own(request), resume_run_id=known) as resumed:  # as its checkpoint says
        for step in range(6, 10):
            resumed.log_metrics({"train_loss": step / 2}, step=step)
    assert history(resumed, "train_loss") == steps(10)
    runs = {run.info.run_id: run for run in runs_of(request.node.name)}
    assert len(runs) == 2
    assert runs[resumed.run_id].data.tags[BEGUN_AS_TAG] == known


@pytest.mark.slow
def test_one_whose_making_was_cut_short_is_not_made_twice(line, request) -> None:
    with start_run(own(request), "cut short") as run:
        run.log_metrics({"train_loss": 1.0}, step=1)
    line.open()
    client = connect()  # as a process does that is killed before it has written down the new id
    tags = {BEGUN_AS_TAG: run.run_id}
    made = client.create_run(experiment_id(client, request.node.name), run_name="cut short", tags=tags)
    assert plan_of(read_records(spool() / run.run_id))
    with start_run(own(request), "another"):
        pass
    stored = {one.info.run_name: one for one in runs_of(request.node.name)}
    assert sorted(stored) == ["another", "cut short"]
    assert stored["cut short"].info.run_id == made.info.run_id
    assert stored["cut short"].data.metrics["train_loss"] == 1.0


@pytest.mark.slow
def test_a_run_that_goes_on_in_the_dark_has_each_step_once(line, request) -> None:
    line.open()
    first = start_run(own(request, learning_rate=0.002), "goes on")
    for step in range(30):
        first.log_metrics({"train_loss": step / 2}, step=step)
    first.log_metrics({"steps": 30})
    first.finish("KILLED")
    system = history(first, "system/cpu_utilization_percentage")
    line.close()
    second = start_run(own(request, learning_rate=0.5), resume_run_id=first.run_id)
    for step in range(40):  # all that its history has, as a training does
        second.log_metrics({"train_loss": step / 2}, step=step)
    second.secure()
    line.open()
    assert second.flush() is True
    for step in range(40, 45):
        second.log_metrics({"train_loss": step / 2}, step=step)
    second.log_metrics({"steps": 45})
    second.finish()
    (stored,) = runs_of(request.node.name)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics["steps"] == 45
    assert json.loads(stored.data.tags["params_changed_later"]) == {
        "train.learning_rate": "0.5",
        "train.min_learning_rate": "0.025",
    }
    assert history(first, "train_loss") == steps(45)
    after = [step for step, _ in history(first, "system/cpu_utilization_percentage")]
    assert after == list(range(len(after)))
    assert len(after) > len(system)


def test_rows_of_a_process_that_did_not_know_the_store_come_after_what_it_has(tmp_path) -> None:
    (tmp_path / "run.jsonl").write_text('["loss", 1.0, 10, 31]\n')  # of a process that knew
    journal = Journal(tmp_path / "run")
    for metrics, step, timestamp in (
        ({"loss": 2.0}, 7, 20),
        ({"loss": 3.0}, 32, 20),
        ({"loss": 3.0}, None, 21),
        ({"steps": 9.0}, None, 22),
        ({"system/cpu": 0.5, "system/disk": 0.5}, NEXT, 23),
        ({"system/cpu": 0.6}, NEXT, 24),
    ):
        journal.add(metrics, step, timestamp)
    journal.secure()
    again = Journal(tmp_path / "run")  # as after a kill
    again.resolve({"loss": 20, "steps": 4, "system/cpu": 5, "system/disk": 6})
    assert (
        again.waiting()
        == read_records(tmp_path / "run")
        == [
            Point("loss", 1.0, 10, 31),
            Point("loss", 3.0, 20, 32),
            Point("loss", 3.0, 21, 32),
            Point("steps", 9.0, 22, 4),
            Point("system/cpu", 0.5, 23, 7),
            Point("system/disk", 0.5, 23, 7),
            Point("system/cpu", 0.6, 24, 8),
        ]
    )


@pytest.mark.slow
def test_a_run_whose_creation_was_not_answered_is_no_second_one(server, monkeypatch, request) -> None:
    connect()
    own_experiment = experiment_id(connect(), request.node.name)
    lost = LostAnswer(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", lost.address)
    run = start_run(own(request), run_name="unheard", resume_key="k")
    assert lost.lost
    run.log_metrics({"train_loss": 0.5}, step=0)
    monkeypatch.setattr(lost, "_pass_on", Proxy._pass_on.__get__(lost))
    lost.open()
    run.finish()
    (stored,) = connect().search_runs([own_experiment])
    assert (stored.info.run_name, stored.info.status) == ("unheard", "FINISHED")
    assert stored.data.metrics["train_loss"] == 0.5
    lost.close()


TRAINING = """
import itertools, json, sys, time
from pathlib import Path
from gpt2ops.params.schema import parse_params
from gpt2ops.tracking.api import start_run
params = parse_params({"run": {"experiment": sys.argv[1]}})
checkpoint = Path("checkpoint.json")
saved = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "run_id": None}
run = start_run(params, "flapping", resume_run_id=saved["run_id"], resume_key="k")
run._sender.interval_seconds = 0.1
print("started", flush=True)
for step in range(saved["step"] + 1, 61):
    run.log_metrics({"train_loss": step / 2}, step=step)
    if step % 5 == 0:
        run.set_tags({f"tag-{step}": "old"})
        run.set_tags({f"tag-{step}": str(step)})
        note = Path("note.txt")
        note.write_text(str(step))
        run.log_artifact(note, f"notes-{step}")
        run.log_text("words", f"texts/{step}.txt")
        run.secure()
        Path("checkpoint.tmp").write_text(json.dumps({"step": step, "run_id": run.run_id}))
        Path("checkpoint.tmp").replace(checkpoint)
    time.sleep(0.02)
run.log_metrics({"steps": 60})
run.finish()
"""


@pytest.mark.slow
def test_a_training_killed_at_random_while_the_server_comes_and_goes_is_one_whole_run(line, server, request) -> None:
    chance, flaps, ended = random.Random(17), random.Random(18), threading.Event()

    def flap() -> None:
        while not ended.wait(flaps.uniform(0.1, 0.6)):
            line.open()
            ended.wait(flaps.uniform(0.1, 1.0))
            line.close()

    flapping = threading.Thread(target=flap)
    flapping.start()
    command = [sys.executable, "-c", TRAINING, request.node.name]
    kills = 0
    while True:
        with subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            while child.stdout.readline() not in ("started\n", ""):
                pass
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(chance.uniform(0.05, 0.35) if kills < 6 else None)  # three are less than a run
            child.kill()
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        kills += 1
    ended.set()
    flapping.join()
    line.open()
    with start_run(own(request), "next"):
        pass
    stored = runs_of(request.node.name)
    assert sorted(run.info.run_name for run in stored) == ["flapping", "next"]
    (run,), client = [run for run in stored if run.info.run_name == "flapping"], connect()
    assert kills > 2
    assert (run.info.status, run.data.metrics["steps"]) == ("FINISHED", 60)
    assert run.data.params["train.learning_rate"] == "0.003"
    points = client.get_metric_history(run.info.run_id, "train_loss")
    assert sorted((point.step, point.value) for point in points) == [(step, step / 2) for step in range(1, 61)]
    system = [point.step for point in client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")]
    assert len(system) == len(set(system))
    for step in range(5, 61, 5):
        assert run.data.tags[f"tag-{step}"] == str(step)
        assert Path(client.download_artifacts(run.info.run_id, f"notes-{step}/note.txt")).read_text() == str(step)
        assert Path(client.download_artifacts(run.info.run_id, f"texts/{step}.txt")).read_text() == "words"
    assert spooled() == []
