"""MLflow that goes away, answers slowly, is locked or has a full disk: nothing of a run is lost or there twice."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2core.storage.files import write_json
from gpt2ops.maintenance.doctor.finding import LOOK, OK
from gpt2ops.maintenance.doctor.store import waiting_metrics
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.store.client import connect, experiment_id
from gpt2ops.tracking.api import start_run, tracked_run
from gpt2ops.training.log import TrainingLog
from tests.support.full_disk import Filler
from tests.support.mlflow_server import Proxy, steps
from tests.support.tracked_project import history, params_with
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back_has_everything_once(server, capsys) -> None:
    run = start_run(params_with(), run_name="interrupted")
    for step in range(30):
        if step == 10:
            run.flush()
            server.kill()
        if step == 20:
            server.start()
        run.log_metrics({"train_loss": step / 2}, step=step)
        if step in (12, 15):
            assert run.flush() is False
        if step == 15:
            run.set_tags({"while": "down"})
            run.log_text("words", "logs/words.txt")
            run.secure()
    run.finish()
    assert history(run, "train_loss") == steps(30)
    stored = connect().get_run(run.run_id)
    assert (stored.data.tags["while"], stored.info.status) == ("down", "FINISHED")
    assert list((mlruns() / "spool").iterdir()) == []
    said = capsys.readouterr().out
    assert said.count("MLflow does not take what is logged to interrupted (no answer)") == 1
    assert "MLflow answers again" in said


@pytest.mark.slow
def test_what_a_run_could_not_send_before_it_ended_is_sent_by_the_next_one_once(server, monkeypatch, capsys) -> None:
    proxy = Proxy(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
    run = start_run(params_with(), run_name="ended in the dark")
    write_json(paths.RUN, run.record("gpt2"))
    proxy.close()
    for step in range(5):
        run.log_metrics({"train_loss": step / 2}, step=step)
    note = Path("note.txt")
    note.write_text("first")
    run.log_artifact(note, "logs")
    note.write_text("changed since")
    run.log_table([{"a": 1}, {"a": 2}], "tables/numbers.json")
    run.log_dataset(json.loads((paths.TOKENS / "manifest.json").read_text()), split="train")
    ended_at = time.time()
    run.finish("KILLED")
    assert "at the latest by the next stage or run" in capsys.readouterr().out
    proxy.open()
    with start_run(params_with(), run_name="next"):
        pass
    assert "what waited for MLflow run ended in the dark has been sent" in capsys.readouterr().out
    stored = connect().get_run(run.run_id)
    assert stored.info.status == "KILLED"
    assert abs(stored.info.end_time / 1000 - ended_at) < 5
    assert history(run, "train_loss") == steps(5)
    assert Path(connect().download_artifacts(run.run_id, "logs/note.txt")).read_text() == "first"
    assert "mlflow.loggedArtifacts" in stored.data.tags
    assert len(stored.inputs.dataset_inputs) == 1
    assert stored.data.params["train.learning_rate"] == "0.003"
    with tracked_run():  # a later stage of the run sends nothing again
        pass
    assert history(run, "train_loss") == steps(5)
    proxy.close()


@pytest.mark.slow
def test_a_slow_server_does_not_hold_up_a_training(server, monkeypatch) -> None:
    run = start_run(params_with())
    proxy = Proxy(server.port, 3.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
    run._link._client = connect()
    longest = 0.0
    for step in range(30):
        started_at = time.perf_counter()
        run.log_metrics({"train_loss": step / 2}, step=step)
        if step % 5 == 0:
            run.set_tags({"at": str(step)})
            run.secure()  # as before each checkpoint
        longest = max(longest, time.perf_counter() - started_at)
    assert longest < 1.5  # less than one answer takes
    proxy.seconds = 0.0
    run.finish()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    assert history(run, "train_loss") == steps(30)
    assert connect().get_run(run.run_id).data.tags["at"] == "25"
    proxy.close()


def test_rows_secured_before_a_kill_are_sent_by_the_next_process_and_not_played_twice(project) -> None:
    code = (
        "import os, signal; from gpt2ops.params.schema import Params; from gpt2ops.tracking.api import start_run\n"
        "run = start_run(Params()); print(run.run_id, flush=True)\n"
        "for step in range(5): run.log_metrics({'train_loss': step / 2}, step=step)\n"
        "run.secure(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    with start_run(params_with(), resume_run_id=child.stdout.split()[0]) as run:
        for step in range(3, 8):  # the checkpoint was older than what was secured
            run.log_metrics({"train_loss": step / 2}, step=step)
    assert history(run, "train_loss") == steps(8)


HOLDING = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(4)
connection.execute("ROLLBACK")
"""


@pytest.mark.slow
def test_a_database_that_another_program_writes_into_for_seconds_is_waited_for(project, capsys) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(mlruns() / "mlflow.db")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with start_run(params_with(learning_rate=0.002), "waits") as run:  # which writes at once
        assert holder.poll() is not None
        for step in range(5):
            run.log_metrics({"train_loss": step / 2}, step=step)
    stored = connect().get_run(run.run_id)
    assert (stored.info.status, stored.data.params["train.learning_rate"]) == ("FINISHED", "0.002")
    assert history(run, "train_loss") == steps(5)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.skipif("GPT2_LONG_TESTS" not in os.environ, reason="waits 20 s for SQLite; set GPT2_LONG_TESTS to run it")
def test_a_training_starts_while_the_database_stays_locked(project, capsys) -> None:
    with contextlib.closing(sqlite3.connect(mlruns() / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        run = start_run(params_with(), "locked")
        run.log_metrics({"train_loss": 0.0}, step=0)
        other.execute("ROLLBACK")
    run.finish()
    (stored,) = connect().search_runs([experiment_id(connect(), "gpt2")])
    assert (stored.info.run_name, stored.info.status) == ("locked", "FINISHED")
    assert history(run, "train_loss") == steps(1)
    assert "is away (" in capsys.readouterr().out


@pytest.mark.skipif("GPT2_LONG_TESTS" not in os.environ, reason="waits 20 s for SQLite; set GPT2_LONG_TESTS to run it")
def test_a_locked_database_is_waited_for_beside_the_training(project, capsys) -> None:
    run = start_run(params_with())
    run.flush()
    with contextlib.closing(sqlite3.connect(mlruns() / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for step in range(5):
            run.log_metrics({"train_loss": step / 2}, step=step)
        # The thread waits for SQLite, this one does not.
        wait_until(lambda: "MLflow does not take what is logged" in capsys.readouterr().out)
        other.execute("ROLLBACK")
    run.finish()
    assert history(run, "train_loss") == steps(5)
    assert connect().get_run(run.run_id).info.status == "FINISHED"


def test_a_full_disk_of_the_store_ends_nothing_and_loses_nothing(
    small_disk,
    empty_store,
    bare_project,
    monkeypatch,
    capsys,
) -> None:
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    (small_disk / "mlruns").mkdir()
    shutil.copy(empty_store, small_disk / "mlruns/mlflow.db")
    monkeypatch.setenv("GPT2_PROJECT_ROOT", str(small_disk))
    filler = Filler(small_disk, 0, None)
    run = start_run(params_with())
    run.flush()
    filler.fill_up()
    for step in range(2000):  # more than fits into what SQLite has allocated
        run.log_metrics({f"metric_{i}": step / 2 for i in range(5)}, step=step)
    assert run.flush() is False
    run.secure()
    run.set_tags({"while": "full"})
    filler.ballast.unlink()
    run.finish()
    said = capsys.readouterr().out
    assert "MLflow does not take what is logged" in said
    assert "cannot be written (No space left on device)" in said
    for i in range(5):
        assert history(run, f"metric_{i}") == steps(2000)
    stored = connect().get_run(run.run_id)
    assert (stored.data.tags["while"], stored.info.status) == ("full", "FINISHED")


def test_what_a_disk_shared_by_store_and_spool_lost_comes_again_from_the_reports(
    small_disk, empty_store, bare_project, monkeypatch, capsys
) -> None:
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    (small_disk / "mlruns").mkdir()
    shutil.copy(empty_store, small_disk / "mlruns/mlflow.db")
    monkeypatch.setenv("GPT2_PROJECT_ROOT", str(small_disk))
    filler = Filler(small_disk, 0, None)
    rows = [
        {"step": step, "train_loss": step / 2, "val_loss": None if step % 2 else float(step)} for step in range(4000)
    ]
    run = start_run(params_with())
    write_json(paths.RUN, run.record("gpt2"))
    for row in rows:
        if row["step"] == 10:
            run.flush()
            filler.fill_up()
        run.log_metrics({key: row[key] for key in ("train_loss", "val_loss")}, step=row["step"])
    run.log_metrics({"train_loss_full": 0.5, "train_loss": 0.25})  # the second has a value at the last step already
    run.finish()
    write_json(paths.HISTORY, rows)
    write_json(paths.TRAIN_METRICS, {"train_loss_full": 0.5, "train_loss": 0.25, "stop_reason": "target"})
    assert " are lost " in capsys.readouterr().out
    filler.ballast.unlink()
    (finding,) = waiting_metrics(Path())
    assert (finding.state, finding.remedy) == (LOOK, "dvc repro --force --single-item report")
    with tracked_run():  # any later stage
        pass
    assert f"{paths.HISTORY}" in capsys.readouterr().out
    write_json(paths.EVALUATE_METRICS, {"test": {"perplexity": 20.0}})
    for _ in range(2):
        with tracked_run(last=True):
            pass
    assert history(run, "train_loss") == [*steps(4000), (3999, 0.25)]
    assert history(run, "val_loss") == [(step, float(step)) for step in range(0, 4000, 2)]
    stored = connect().get_run(run.run_id).data.metrics
    assert (stored["train_loss"], stored["train_loss_full"], stored["evaluate/test_perplexity"]) == (0.25, 0.5, 20.0)
    (finding,) = waiting_metrics(Path())
    assert finding.state == OK


def test_points_missing_within_a_history_are_found_at_the_end_of_a_run(project) -> None:
    with start_run(params_with()) as run:
        write_json(paths.RUN, run.record("gpt2"))
        for step in (0, 1, 2, 7, 8):  # a process that lost 3 to 6 was killed, and another resumed
            run.log_metrics({"train_loss": step / 2}, step=step)
    write_json(paths.HISTORY, [{"step": step, "train_loss": step / 2} for step in range(9)])
    with tracked_run(last=True):
        pass
    assert history(run, "train_loss") == steps(9)
    moments = [point.timestamp for point in connect().get_metric_history(run.run_id, "train_loss")]
    by_step = sorted(connect().get_metric_history(run.run_id, "train_loss"), key=lambda point: point.step)
    assert [point.timestamp for point in by_step] == sorted(moments)


def test_a_log_file_that_the_disk_does_not_take_is_said_once_and_ends_nothing(
    small_disk,
    monkeypatch,
    capsys,
) -> None:
    monkeypatch.chdir(small_disk)
    log = TrainingLog()
    filler = Filler(small_disk, 0, None)
    filler.fill_up()
    for number in range(200):
        log.say(f"line {number} " + "x" * 80)
    said = capsys.readouterr().out
    assert said.count("cannot be written (No space left on device); training continues") == 1
    assert "line 199 " in said
    filler.ballast.unlink()
    log.say("room again")
    log.close()
    assert "room again" in log.path.read_text()
    assert "line 50 " in log.path.read_text()
