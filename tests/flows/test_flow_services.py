"""What `python -m flows.serve` keeps track of: its processes, and the flow runs that a killed worker left."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import serve
from flows.engine import pool
from flows.engine.services import Services, end, left_over
from flows.fine_tune import kept_line
from gpt2core.errors import UserError

# As `python -m flows.serve` does: a service that has a child of its own, in a session of its own.
SERVING = """
import os, sys, time
from pathlib import Path
from flows.engine.services import Services
(Path(sys.argv[1]) / "tree.py").write_text(
    "import subprocess, sys, time\\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\\n"
    "time.sleep(600)\\n"
)
services = Services(Path(sys.argv[1]), Path(sys.argv[1]) / "logs", os.environ)
services.start("tree", "tree")
time.sleep(600)
"""


@pytest.fixture
def serving(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", SERVING, str(tmp_path), "flows.serve"])
    try:
        wait_for(lambda: len(psutil.Process(process.pid).children(recursive=True)) == 2)
        yield process
    finally:
        process.kill()
        process.wait()
        end(left_over(tmp_path))


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_all_that_a_killed_serve_left_is_found_and_ended(serving: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    family = psutil.Process(serving.pid).children(recursive=True)
    assert left_over(tmp_path) == []  # it serves
    serving.kill()
    serving.wait()
    assert left_over(tmp_path / "elsewhere") == []
    assert {process.pid for process in left_over(tmp_path)} == {process.pid for process in family}
    end(left_over(tmp_path))
    assert not any(runs(process) for process in family)


def test_the_children_of_a_service_that_was_killed_are_stopped_too(tmp_path: Path) -> None:
    (tmp_path / "tree.py").write_text(
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    services = Services(tmp_path, tmp_path / "logs", os.environ)
    service = services.start("tree", "tree")
    parent = psutil.Process(service.process.pid)
    wait_for(lambda: parent.children())
    (orphan,) = parent.children()
    service.process.kill()
    service.process.wait()
    services.stop()
    assert not runs(orphan)


def test_a_port_in_use_names_the_process_that_holds_it() -> None:
    with socket.socket() as holder:
        holder.bind((serve.HOST, 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port {port} is in use: process {os.getpid()} \(.*--mlflow-port\.$"):
            serve.check_port(port, "--mlflow-port")


class Api:
    """Prefect's server as far as the pool asks it: workers, flow runs by state, and a pool that may be paused."""

    def __init__(self, workers: list[str], **states: str) -> None:
        self.workers = workers
        self.states = states
        self.paused = False

    def request(self, method: str, url: str, body: Any = None) -> Any:
        match method, url.removeprefix("api/").split("/"):
            case "POST", ["work_pools", "local", "workers", "filter"]:
                return [{"name": name, "status": "ONLINE"} for name in self.workers]
            case "DELETE", ["work_pools", "local", "workers", name]:
                self.workers.remove(name.replace("%20", " "))
            case "POST", ["flow_runs", "filter"]:
                wanted = body["flow_runs"]["state"]["type"]["any_"]
                return [{"id": name} for name, state in self.states.items() if state in wanted]
            case "POST", ["flow_runs", name, "set_state"]:
                self.states[name] = body["state"]["type"]
            case "GET", ["work_pools", "local"]:
                return {"is_paused": self.paused}
            case "PATCH", ["work_pools", "local"]:
                self.paused = body["is_paused"]
            case _:
                raise AssertionError(f"{method} {url}")
        return None


def served_by(monkeypatch: pytest.MonkeyPatch, api: Api) -> None:
    monkeypatch.setattr(pool, "request", api.request)


def test_a_killed_workers_runs_are_closed_while_prefect_still_calls_it_online(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api(["ProcessWorker 1", "local-999999999"], one="RUNNING", two="SCHEDULED", three="CANCELLING")
    served_by(monkeypatch, api)
    assert pool.close_abandoned("api") == 2
    assert api.states == {"one": "CRASHED", "two": "SCHEDULED", "three": "CRASHED"}
    assert not pool.worker_is_online("api")
    api.workers.append(pool.worker_name())
    assert pool.worker_is_online("api")


def test_runs_of_another_serve_with_the_same_database_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, serving: "subprocess.Popen[bytes]"
) -> None:
    other = f"local-{serving.pid}"
    api = Api([other, "local-999999999"], one="RUNNING")
    served_by(monkeypatch, api)
    assert pool.close_abandoned("api") == 0
    assert (api.states, api.workers) == ({"one": "RUNNING"}, [other])
    assert not pool.worker_is_online("api")


def test_no_run_stays_cancelling_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api([], one="RUNNING", two="SCHEDULED")
    served_by(monkeypatch, api)
    monkeypatch.setattr(pool, "_CANCEL_SECONDS", 0.0)
    pool.cancel_running("api")
    assert api.states == {"one": "CRASHED", "two": "SCHEDULED"}
    assert not api.paused


def test_the_last_line_of_a_cancelled_run_says_how_to_go_on(tmp_path: Path) -> None:
    assert kept_line(tmp_path, "abc") == f"the workspace is kept: {tmp_path}; go on with `prefect flow-run retry abc`."
    checkpoint = tmp_path / "models/checkpoints/x/step-3/model.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    line = f"the checkpoint is saved in {tmp_path / 'models/checkpoints'}; go on with `prefect flow-run retry abc`."
    assert kept_line(tmp_path, "abc") == line
