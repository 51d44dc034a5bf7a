"""The flow through a real server, pool and worker, as `python -m flows.serve` starts them, in a copy of the project."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.engine.pool import request
from flows.engine.workspace import copy_project

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "run": {"threads": 1},
    "data": {"max_tokens": 20_000},
    "model": {"block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16},
    "train": {
        "batch_size": 4, "sequence_length": 16, "log_interval": 1, "eval_interval": 2, "eval_batches": 1,
        "sample_tokens": 2, "checkpoint_interval": 100_000, "compile": "off",
        "stop": {"max_steps": 4, "target_loss": 20.0},
    },
    "evaluate": {"batch_size": 4, "max_tokens": 200, "recall_passages": 0},
    "sample": {"prompts": ["A"], "max_new_tokens": 2},
}  # fmt: skip
# No evaluation, so that the only checkpoint there can be is the one that a cancel asks for.
ENDLESS = {
    **TINY,
    "train": {**TINY["train"], "eval_interval": 1_000_000, "stop": {"max_steps": 1_000_000, "target_loss": None}},
}

pytestmark = pytest.mark.slow


class Server:
    """What a user's other terminal sees: the project's folder and the address that `flows.serve` printed."""

    def __init__(self, root: Path, port: int, environment: dict[str, str]) -> None:
        self.root = root
        self.given = {name: (root / name).read_bytes() for name in ("params.yaml", "dvc.yaml")}
        self.api = f"http://127.0.0.1:{port}/api"
        self.environment = {**environment, "PREFECT_API_URL": self.api}

    def deployment_run(self, **parameters: Any) -> "subprocess.CompletedProcess[str]":
        pairs = [part for name, value in parameters.items() for part in ("-p", f"{name}={json.dumps(value)}")]
        return subprocess.run(
            [sys.executable, "-m", "prefect", "deployment", "run", "fine-tune/local", *pairs],
            cwd=self.root, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def post(self, path: str, body: Any) -> Any:
        return request("POST", f"{self.api}/{path}", body)

    def submit(self, parameters: dict[str, Any]) -> str:
        deployment = request("GET", f"{self.api}/deployments/name/fine-tune/local")["id"]
        return str(self.post(f"deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, flow_run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.post("flow_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}})[0]["state"]
        return found

    def log(self, flow_run: str) -> str:
        rows = self.post("logs/filter", {"logs": {"flow_run_id": {"any_": [flow_run]}}, "sort": "TIMESTAMP_ASC"})
        return "\n".join(row["message"] for row in rows)

    def artifact(self, flow_run: str, key: str) -> dict[str, Any]:
        """The newest of that key, {} where there is none yet."""
        wanted = {"flow_run_id": {"any_": [flow_run]}, "key": {"any_": [key]}}
        found = self.post("artifacts/filter", {"artifacts": wanted, "sort": "UPDATED_DESC"})
        return found[0] if found else {}

    def wait_for(self, flow_run: str, kind: str, seconds: float = 300) -> None:
        try:
            wait_until(lambda: self.state(flow_run)["type"] == kind, seconds)
        except TimeoutError:
            pytest.fail(f"not {kind} but {self.state(flow_run)}\n{self.log(flow_run)}")


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.3)


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


class Served:
    """A copy of the project with a `flows.serve` in it, which may be started more than once."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        copy_project(ROOT, self.root)
        subprocess.run([sys.executable, "-m", "dvc", "config", "core.no_scm", "true"], cwd=self.root, check=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "GPT2_"))}
        self.environment = {**kept, "PREFECT_HOME": str(folder / "prefect")}
        self.ports = free_ports()
        self.output = folder / "serve.log"

    def start(self) -> Server:
        command = [sys.executable, "-m", "flows.serve", "--prefect-port", str(self.ports[0])]
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--mlflow-port", str(self.ports[1])],
                cwd=self.root, env=self.environment, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(lambda: self.process.poll() is not None or "Ctrl-C stops" in self.said(), 180)
        assert self.process.poll() is None, self.said()
        return Server(self.root, self.ports[0], self.environment)

    def said(self) -> str:
        return self.output.read_text()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=90)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Served(tmp_path_factory.mktemp("flow-server"))
    try:
        server = served.start()
        assert f"export PREFECT_API_URL={server.api}" in served.said()
        yield server
    finally:
        code = served.stop()
        shutil.rmtree(served.root / "workspaces", ignore_errors=True)
    assert code == 0, served.said()
    for port in served.ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still answers"


def store(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{(root / 'mlruns/mlflow.db').as_posix()}")


def mlflow_runs(root: Path, flow_run: str) -> list[Any]:
    client = store(root)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.prefect_flow_run_id = '{flow_run}'"))


def test_a_failing_stage_turns_the_run_red_and_says_why(server: Server) -> None:
    flow_run = server.submit({**TINY, "data": {"source": "no/such/file.txt"}})
    server.wait_for(flow_run, "FAILED")
    message = server.state(flow_run)["message"]
    assert message.startswith("stage download failed: download: error: ")
    assert "no/such/file.txt" in message
    assert (server.root / "workspaces" / flow_run / "params.yaml").exists()


def test_runs_complete_queue_and_are_cancelled_with_a_checkpoint(server: Server) -> None:
    refused = server.deployment_run(train={"learning_rat": 1e-4})
    assert refused.returncode == 1
    assert "'learning_rat' is not one of" in " ".join(refused.stdout.split())

    triggered = server.deployment_run(**TINY)
    assert triggered.returncode == 0, triggered.stdout + triggered.stderr
    first = triggered.stdout.split("UUID: ")[1].split()[0]
    endless = server.submit(ENDLESS)
    again = server.submit(TINY)
    server.wait_for(first, "COMPLETED")
    (run,) = mlflow_runs(server.root, first)
    assert "cached_from" not in run.data.tags
    assert server.artifact(first, "fine-tune-progress")["data"] == 100.0
    training = server.artifact(first, "training-progress")
    assert training["data"] == 100.0
    assert re.fullmatch(r"finished: step 4 of at most 4, loss 1\d\.\d+, [\d,]+ tokens/s", training["description"])
    assert not (server.root / "workspaces" / first).exists()

    # One place in the pool: the last one waits while the endless one trains.
    wait_until(lambda: re.search(r"step \d+/1000000", server.log(endless)) is not None, 120)
    assert server.state(again)["type"] == "SCHEDULED"
    wait_until(lambda: bool(server.artifact(endless, "training-progress")), 20)
    live = server.artifact(endless, "training-progress")
    assert live["data"] < 100
    assert "of at most 1,000,000" in live["description"]
    assert "finetune: step " in server.artifact(endless, "fine-tune-progress")["description"]
    (training_run,) = mlflow_runs(server.root, endless)
    assert f"/runs/{training_run.info.run_id})" in server.artifact(endless, "mlflow-run")["data"]
    checkpoints = server.root / "workspaces" / endless / "models/checkpoints"
    assert {path.name for path in checkpoints.rglob("step-*")} == {"step-00000000"}
    server.post(f"flow_runs/{endless}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    server.wait_for(endless, "CANCELLED")
    assert max(path.parent.name for path in checkpoints.rglob("step-*/model.safetensors")) > "step-00000000"
    assert f"resume with `prefect flow-run retry {endless}`" in server.log(endless)
    assert "dvc push" not in server.log(first)

    # The same inputs as the first: DVC restores the model, and the run says from which one.
    server.wait_for(again, "COMPLETED")
    assert "Running stage 'finetune'" not in server.log(again)
    (linked,) = mlflow_runs(server.root, again)
    assert linked.data.tags["cached_from"] == run.info.run_id

    summaries = server.post("artifacts/filter", {"artifacts": {"key": {"any_": ["fine-tune-summary"]}}})
    pages = {summary["flow_run_id"]: summary["data"] for summary in summaries}
    assert set(pages) == {first, again}
    assert "data:image/png;base64," in pages[first]
    assert "| registered model | gpt2 version 1, champion |" in pages[first]


def test_the_shared_checkout_is_not_touched(server: Server) -> None:
    for name, content in server.given.items():
        assert (server.root / name).read_bytes() == content
    assert not (server.root / "models").exists()


def test_a_start_after_a_kill_clears_up_and_goes_on_with_the_queue(tmp_path: Path) -> None:
    served = Served(tmp_path)
    try:
        server = served.start()
        lost, then = server.submit(ENDLESS), server.submit(ENDLESS)
        wait_until(lambda: "step 1" in server.log(lost), 120)
        everything = [psutil.Process(served.process.pid), *served.family()]
        assert not any("huey" in " ".join(process.cmdline()) for process in everything)
        for process in everything:
            process.kill()
        served.process.wait()
        psutil.wait_procs(everything, 10)  # the dying still hold their ports

        # Prefect's server still says that the killed worker is online.
        server = served.start()
        assert "1 flow run(s) were queued before this start and start now" in served.said()
        assert server.state(lost)["type"] == "CRASHED"
        wait_until(lambda: re.search(r"step \d+/1000000", server.log(then)) is not None, 120)

        # Now the rest of it goes on without the one that would stop it.
        left = served.family()
        served.process.kill()
        served.process.wait()
        server = served.start()
        assert "that was killed" in served.said()
        assert not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        assert server.state(then)["type"] == "CANCELLED"
        saved = (served.root / "workspaces" / then / "models/checkpoints").rglob("step-*/model.safetensors")
        assert max(path.parent.name for path in saved) > "step-00000000"
    finally:
        code = served.stop()
    assert code == 0
