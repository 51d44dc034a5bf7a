"""A copy of the project with Prefect's server, pool and worker in it, as `python -m flows.serve` starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import dotenv
import psutil
import pytest

from flows.engine.login import ENV_FILE, VARIABLE
from flows.engine.pool import request
from flows.engine.workspace import copy_project
from tests.support.waiting import HANGS, wait_until

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


class Server:
    """What a user's other terminal sees: the project's folder and the address that `flows.serve` printed."""

    def __init__(self, root: Path, ports: tuple[int, int], environment: dict[str, str]) -> None:
        port, self.mlflow_port = ports
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
        return self.request("POST", path, body)

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """With the login that `flows.serve` wrote into the project's `.env`."""
        with mock.patch.dict(os.environ, {VARIABLE: dotenv.dotenv_values(self.root / ENV_FILE)[VARIABLE]}):
            return request(method, f"{self.api}/{path}", body)

    def submit(self, parameters: dict[str, Any]) -> str:
        deployment = self.request("GET", "deployments/name/fine-tune/local")["id"]
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

    def wait_for(self, flow_run: str, kind: str, seconds: float = HANGS) -> None:
        try:
            wait_until(lambda: self.state(flow_run)["type"] == kind, seconds=seconds, interval=0.3)
        except AssertionError:
            pytest.fail(f"not {kind} but {self.state(flow_run)}\n{self.log(flow_run)}")


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
        wait_until(lambda: self.process.poll() is not None or "Ctrl-C stops" in self.said())
        assert self.process.poll() is None, self.said()
        return Server(self.root, self.ports, self.environment)

    def said(self) -> str:
        return self.output.read_text()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=90)


def store(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{(root / 'mlruns/mlflow.db').as_posix()}")


def mlflow_runs(root: Path, flow_run: str) -> list[Any]:
    client = store(root)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.prefect_flow_run_id = '{flow_run}'"))
