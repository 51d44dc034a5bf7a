"""MLflow servers that refuse, break off or fall silent: what a run does, and what it says."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpt2core.errors import UserError
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.registry.download import BEST_CHECKPOINT, checkpoint_directory
from gpt2ops.store.client import connect
from gpt2ops.tracking.api import start_run
from gpt2ops.tracking.journal import plan_of, read_records, spool
from tests.support.mlflow_server import Proxy
from tests.support.tracked_project import params_with, runs_of, spooled
from tests.support.waiting import HANGS, wait_until

ROOT = Path(__file__).parents[2]


class Wrong(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_error(self.server.status)  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None: ...


@pytest.mark.parametrize(("status", "said"), [(401, "login"), (404, "404"), (503, None)])
def test_a_server_that_refuses_is_a_mistake_and_one_that_is_overloaded_is_away(
    bare_project, monkeypatch, status, said
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Wrong) as wrong:
        wrong.status = status  # type: ignore[attr-defined]
        threading.Thread(target=wrong.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{wrong.server_port}")
        if said is None:
            start_run(params_with()).finish()
            assert plan_of(read_records(spool() / spooled()[0].removesuffix(".jsonl")))
        else:
            with pytest.raises(UserError, match=f"^cannot use the MLflow store http.*{said}"):
                start_run(params_with())
            assert not mlruns().exists()
        wrong.shutdown()


class Cutting(Proxy):
    """Cuts a connection that has brought so many bytes, as often as `cuts` says."""

    def __init__(self, port: int, limit: int, cuts: int) -> None:
        self.limit, self.cuts, self.brought = limit, cuts, 0
        super().__init__(port)

    def _pass_on(self, source: socket.socket, target: socket.socket, delayed: bool) -> None:
        here, downwards = 0, source.getpeername()[1] == self.target
        try:
            while block := source.recv(1 << 14):
                target.sendall(block)
                if downwards:
                    here, self.brought = here + len(block), self.brought + len(block)
                if downwards and self.cuts and here > self.limit:
                    self.cuts -= 1
                    target.shutdown(socket.SHUT_RDWR)
                    return
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.mark.slow
def test_weights_that_break_off_on_their_way_from_a_server_go_on_where_they_broke_off(
    server, tmp_path, monkeypatch, capsys
) -> None:
    content = os.urandom(4_000_000)
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    with start_run(params_with()) as run:
        run.log_artifacts(folder, BEST_CHECKPOINT)
    proxy = Cutting(server.port, 1_500_000, cuts=2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
    sha256 = hashlib.sha256(content).hexdigest()
    found = checkpoint_directory(connect(), run.run_id, sha256, "model.init", pause_seconds=0.01)
    assert (found / "model.safetensors").read_bytes() == content
    assert (found / "config.json").read_text() == "{}"
    assert proxy.cuts == 0
    assert proxy.brought < 1.5 * len(content)
    assert capsys.readouterr().out.count("trying again in") == 2
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
    (found / "model.safetensors").unlink()
    (found / ".model.safetensors.partial").write_bytes(b"of something else")
    again = checkpoint_directory(connect(), run.run_id, sha256, "model.init", pause_seconds=0.01)
    assert (again / "model.safetensors").read_bytes() == content
    proxy.close()


STOPPED = """
import time
from gpt2ops.params.schema import Params
from gpt2ops.process.signals import Interruption
from gpt2ops.tracking.api import start_run
run = start_run(Params(), "stopped")
run._sender.interval_seconds = 0.1
with Interruption() as interruption:
    run.log_metrics({"train_loss": 0.0}, step=0)
    run.flush()
    print("ready", flush=True)
    step = 0
    while not interruption.requested():
        step += 1
        run.log_metrics({"train_loss": float(step)}, step=step)
        time.sleep(0.05)
    run.finish("KILLED")
print(step, flush=True)
"""


@pytest.mark.slow
def test_a_server_that_has_gone_silent_does_not_keep_an_interrupted_training(server, monkeypatch) -> None:
    proxy = Silencer(server.port)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": proxy.address}
    child = subprocess.Popen([sys.executable, "-c", STOPPED], env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    while child.stdout.readline() != "ready\n":
        assert child.poll() is None
    proxy.silent.set()
    wait_until(proxy.asked.is_set, child)  # the thread that sends waits for an answer
    child.send_signal(signal.SIGTERM)
    asked_at = time.monotonic()
    output = child.communicate(timeout=HANGS)[0]
    assert time.monotonic() - asked_at < 30  # an answer is waited for 120 s
    last = int(output.split()[-1])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    with start_run(params_with(), "next"):
        pass
    stopped = next(one for one in runs_of("gpt2") if one.info.run_name == "stopped")
    assert stopped.info.status == "KILLED"
    found = connect().get_metric_history(stopped.info.run_id, "train_loss")
    assert sorted((point.step, point.value) for point in found) == [(step, float(step)) for step in range(last + 1)]
    proxy.close()


class Silencer(Proxy):
    """After `silent` it takes what it is told and never answers."""

    def __init__(self, port: int) -> None:
        self.silent, self.asked = threading.Event(), threading.Event()
        super().__init__(port)

    def _pass_on(self, source: socket.socket, target: socket.socket, delayed: bool) -> None:
        try:
            while block := source.recv(1 << 16):
                if self.silent.is_set():
                    self.asked.set()
                else:
                    target.sendall(block)
        except OSError:
            return
