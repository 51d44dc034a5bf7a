"""MLflow that goes away, answers slowly, is locked or has a full disk: nothing of a run is lost or there twice."""

# ruff: noqa: F401, F811

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from flows.serve import SERVER_ENVIRONMENT
from gpt2core.storage.files import write_json
from gpt2ops import paths
from gpt2ops.tracking.api import start_run, tracked_run
from gpt2ops.tracking.store import connect, experiment_id, mlruns
from gpt2ops.training.log import TrainingLog
from tests.faults.test_faults import Filler, small_disk
from tests.gpt2ops.tracking.test_tracking import bare_project, empty_store, history, params_with, project
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Server:
    """A real `mlflow server` that can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                env={**os.environ, **SERVER_ENVIRONMENT},
            )  # fmt: skip
        try:
            wait_until(self._answers, self.process)
        except AssertionError as error:
            raise AssertionError((self.folder / "server.log").read_text()) from error

    def _answers(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{self.address}/health", timeout=5).ok
        return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Proxy:
    """Passes bytes on to `port`, each block after `seconds`; it can go away and come back."""

    def __init__(self, port: int, seconds: float = 0.0) -> None:
        self.target, self.seconds, self.port = port, seconds, 0
        self.connections: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for connection in (self.listener, *self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.connections.clear()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.target))
        threading.Thread(target=self._pass_on, args=(server, client, 0.0), daemon=True).start()
        self._pass_on(client, server, self.seconds)

    def _pass_on(self, source: socket.socket, target: socket.socket, seconds: float) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                time.sleep(seconds)
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def module_server(empty_store, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture
def server(module_server, bare_project, monkeypatch) -> Server:
    if module_server.process is None:
        module_server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", module_server.address)
    # A refused connection is known at once; by default it is tried again for some seconds.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return module_server


def steps(count: int) -> list[tuple[int, float]]:
    return [(step, step / 2) for step in range(count)]


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
    proxy = Proxy(server.port, 0.4)
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
        time.sleep(0.03)
    assert longest < 0.3
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
        said, deadline = "", time.monotonic() + 60
        while "MLflow does not take what is logged" not in said:  # the thread waits for SQLite, this one does not
            assert time.monotonic() < deadline
            time.sleep(0.1)
            said += capsys.readouterr().out
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
    assert said.count("cannot be written (No space left on device); training goes on") == 1
    assert "line 199 " in said
    filler.ballast.unlink()
    log.say("room again")
    log.close()
    assert "room again" in log.path.read_text()
    assert "line 50 " in log.path.read_text()
