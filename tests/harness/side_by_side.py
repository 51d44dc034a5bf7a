"""Starts real small pipelines at one moment on one new MLflow store, and looks what they did to each other.

`python -m tests.harness.side_by_side --pipelines 10` has them share a SQLite file, while MLflow's page is open on it
and asked for everything again and again; with `--server` they share an `mlflow server`. Then two `dvc repro` are
started at once in one checkout, and two flow runs of one project.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from flows.serve import SERVER_ENVIRONMENT
from gpt2core.storage.files import read_json
from tests.support.small_project import ROOT, TINY, Project, copy_sources

STEPS = 30
OVERRIDES: dict[str, Any] = {
    **TINY,
    "train": {**TINY["train"], "eval_interval": 15, "stop": {"max_steps": STEPS, "target_loss": None}},
}
# What a user would not want to read in any of their outputs.
UNWANTED = ("Traceback", "already exists", "database is locked", "duplicate column", "tracking: warning")


@dataclass
class Tally:
    """What happened; `faults` is what the promise says stays empty."""

    finished: int = 0
    versions: int = 0
    answers: int = 0  # of MLflow's page
    waited: int = 0  # projects that said for whom they wait
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def summary(self, what: str) -> str:
        faults = "".join(f"\nFAULT {fault}" for fault in self.faults)
        return (
            f"{what}: {self.finished} runs finished, {self.versions} versions registered, {self.waited} waited and "
            f"said for whom, MLflow's page answered {self.answers} times, {self.seconds:.0f} s, "
            f"{len(self.faults)} faults{faults}"
        )


class Page:
    """`mlflow server` on a store, and a reader who asks it for everything a page shows."""

    def __init__(self, folder: Path, database: Path, artifacts: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.log = folder / "mlflow-server.log"
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(artifacts)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**environment, **SERVER_ENVIRONMENT}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.answers, self.faults = 0, list[str]()
        self.is_closed = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)

    def wait(self) -> None:
        deadline = time.monotonic() + 180
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{self.address}/health", timeout=5).ok:
                    return
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def open(self) -> None:
        self.reader.start()

    def _read(self) -> None:
        self.wait()
        api = f"{self.address}/api/2.0/mlflow"
        while not self.is_closed.wait(0.3):
            try:
                experiments = self._ask("POST", f"{api}/experiments/search", {"max_results": 50}).get("experiments", [])
                ids = [experiment["experiment_id"] for experiment in experiments]
                runs = self._ask("POST", f"{api}/runs/search", {"experiment_ids": ids}).get("runs", [])
                for run in runs[:3]:
                    query = f"run_id={run['info']['run_id']}"
                    self._ask("GET", f"{api}/metrics/get-history?{query}&metric_key=train_loss", None)
                self._ask("GET", f"{api}/registered-models/search", None)
            except (requests.RequestException, ValueError) as error:
                self.faults.append(f"MLflow's page: {error}")

    def _ask(self, method: str, url: str, body: Any) -> Any:
        answer = requests.request(method, url, json=body, timeout=60)
        if not answer.ok:
            raise ValueError(f"{answer.status_code} from {url}: {answer.text[:200]}")
        self.answers += 1
        return answer.json()

    def close(self) -> None:
        self.is_closed.set()
        if self.reader.is_alive():
            self.reader.join()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(timeout=60)


def make_projects(root: Path, count: int, overrides: dict[str, Any]) -> list[Project]:
    """Alike but for their seed; the tokens of the first serve all."""
    template = root / "template"
    template.mkdir(parents=True)
    copy_sources(template)
    project = Project(template, overrides)
    project.dvc("config", "--local", "core.no_scm", "true")
    project.dvc("repro", "tokenize")
    projects = []
    for number in range(count):
        folder = root / f"project-{number}"
        shutil.copytree(template, folder)
        projects.append(Project(folder, {**overrides, "run": {**overrides["run"], "seed": number}}))
    return projects


def start(project: Project, *command: str) -> "subprocess.Popen[bytes]":
    with (project.root / "output.log").open("ab") as log:
        return subprocess.Popen(command, cwd=project.root, env=project.environment, stdout=log, stderr=log)


def pipelines(root: Path, count: int, *, server: bool) -> Tally:
    """`count` pipelines at once on a store that is not there yet."""
    projects, tally = make_projects(root, count, OVERRIDES), Tally()
    database = root / "shared.db"
    page = Page(root, database, root / "shared-artifacts")
    if server:
        page.wait()
    uri = page.address if server else f"sqlite:///{database}"
    started_at = time.monotonic()
    try:
        page.open()
        for project in projects:
            project.environment["MLFLOW_TRACKING_URI"] = uri
        processes = [start(project, sys.executable, "-m", "dvc", "repro") for project in projects]
        for project, process in zip(projects, processes, strict=True):
            code = process.wait()
            said = (project.root / "output.log").read_text(errors="replace")
            tally.waited += "waiting for another run" in said
            if code:
                tally.faults.append(f"{project.root.name} ended with {code}: {said[-2000:]}")
            tally.faults += [
                f"{project.root.name} said {word!r}: {line_with(said, word)}" for word in UNWANTED if word in said
            ]
        tally.seconds = time.monotonic() - started_at
        check_store(uri, run_ids(projects), count, tally)
    finally:
        page.close()
    tally.answers = page.answers
    tally.faults += page.faults
    return tally


def line_with(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def run_ids(projects: list[Project]) -> set[str]:
    return {read_json(project.root / "models/run.json")["run_id"] for project in projects}


def check_store(uri: str, expected: set[str] | None, count: int, tally: Tally) -> None:
    """Every run whole and there once, every version of the model, and the best of them champion.

    `expected` are the ids that the projects wrote down, None where their folders are gone.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("gpt2")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    expected = expected or set(runs)
    if runs.keys() != expected or len(runs) != count:
        tally.faults.append(f"runs in the store: {len(runs)}, of the projects: {len(expected & runs.keys())}")
    for run_id, run in runs.items():
        if run.info.status != "FINISHED":
            tally.faults.append(f"run {run_id} says {run.info.status}")
        logged = [point.step for point in client.get_metric_history(run_id, "learning_rate")]
        if sorted(logged) != list(range(1, STEPS + 1)):
            tally.faults.append(f"run {run_id} has the steps {sorted(logged)}")
        missing = {
            "train_loss",
            "evaluate/test_perplexity",
            "system/cpu_utilization_percentage",
        } - run.data.metrics.keys()
        if missing:
            tally.faults.append(f"run {run_id} has no {', '.join(sorted(missing))}")
        kept = {item.path for item in client.list_artifacts(run_id, "checkpoints/best")}
        if "checkpoints/best/model.safetensors" not in kept:
            tally.faults.append(f"run {run_id} has no weights in its artifacts")
    tally.finished = sum(run.info.status == "FINISHED" for run in runs.values())
    for name in ("gpt2", "gpt2-text"):
        versions = client.search_model_versions(f"name = '{name}'")
        numbers = sorted(int(entry.version) for entry in versions)
        if numbers != list(range(1, count + 1)):
            tally.faults.append(f"{name} has the versions {numbers}")
        if {entry.run_id for entry in versions} != expected:
            tally.faults.append(f"the versions of {name} are of other runs")
        passed = [entry for entry in versions if entry.tags.get("gate") == "passed"]
        best = min(passed, key=lambda entry: float(entry.tags["held_out_perplexity"]), default=None)
        champion = client.get_registered_model(name).aliases.get("champion")
        if best is None or str(champion) != str(best.version):
            tally.faults.append(f"champion of {name} is {champion}, the best that passed is {best and best.version}")
    tally.versions = len(client.search_model_versions("name = 'gpt2'"))


def one_checkout(root: Path) -> Tally:
    """Two `dvc repro` at once in one folder: one works, the other is told who, and neither spoils anything."""
    (project,), tally = make_projects(root, 1, OVERRIDES), Tally()
    started_at = time.monotonic()
    outputs = [root / "first.log", root / "second.log"]
    processes = []
    for output in outputs:
        with output.open("wb") as log:
            command = [sys.executable, "-m", "dvc", "repro"]
            processes.append(
                subprocess.Popen(command, cwd=project.root, env=project.environment, stdout=log, stderr=log)
            )
    codes = [process.wait() for process in processes]
    tally.seconds = time.monotonic() - started_at
    for code, output in zip(codes, outputs, strict=True):
        said = output.read_text(errors="replace")
        told = (
            "is busy, it is being blocked by" in said or "waiting for the stage" in said or "Unable to acquire" in said
        )
        tally.waited += told
        if (code and not told) or "Traceback" in said:
            tally.faults.append(f"{output.name} ended with {code}: {said[-2000:]}")
    if all(codes):
        tally.faults.append("neither came to its end")
    again = project.dvc("repro", check=False)
    if again.returncode or "up to date" not in again.stdout + again.stderr:
        tally.faults.append(f"the next one did not find everything done: {again.stdout[-1000:]}{again.stderr[-1000:]}")
    check_store(f"sqlite:///{project.root}/mlruns/mlflow.db", run_ids([project]), 1, tally)
    return tally


def two_flows(root: Path) -> Tally:
    """Two `python -m flows.fine_tune` at once in one project, where neither Prefect nor MLflow has been before."""
    (project,), tally = make_projects(root, 1, OVERRIDES), Tally()
    shutil.copy(ROOT / "prefect.toml", project.root)
    kept = {key: value for key, value in project.environment.items() if not key.startswith("PREFECT_")}
    project.environment = {**kept, "PREFECT_HOME": str(root / "prefect")}
    started_at, processes = time.monotonic(), []
    for seed in (1, 2):
        with (root / f"flow-{seed}.log").open("wb") as log:
            command = [sys.executable, "-m", "flows.fine_tune", "--set", f"run.seed={seed}"]
            processes.append(
                subprocess.Popen(command, cwd=project.root, env=project.environment, stdout=log, stderr=log)
            )
    for seed, process in enumerate(processes, 1):
        code, said = process.wait(), (root / f"flow-{seed}.log").read_text(errors="replace")
        if code or "Traceback" in said:
            tally.faults.append(f"flow-{seed}.log ended with {code}: {said[-3000:]}")
    tally.seconds = time.monotonic() - started_at
    if left := list((project.root / "workspaces").iterdir()):
        tally.faults.append(f"workspaces are left: {left}")
    check_store(f"sqlite:///{project.root}/mlruns/mlflow.db", None, 2, tally)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.harness.side_by_side", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--pipelines", type=int, default=10)
    parser.add_argument("--server", action="store_true", help="share an `mlflow server`, not a SQLite file")
    parser.add_argument("--directory", type=Path, help="an empty folder to work in (default: a temporary one)")
    options = parser.parse_args()
    if options.directory and options.directory.exists():
        parser.error(f"{options.directory} is there already")
    root = options.directory or Path(tempfile.mkdtemp(prefix="gpt2-side-by-side-"))
    together = pipelines(root / "together", options.pipelines, server=options.server)
    store = "an mlflow server" if options.server else "a new SQLite file"
    print(together.summary(f"{options.pipelines} pipelines at once on {store}"), flush=True)
    alone = one_checkout(root / "alone")
    print(alone.summary("two `dvc repro` at once in one checkout"), flush=True)
    flows = two_flows(root / "flows")
    print(flows.summary("two flow runs at once in one project"), flush=True)
    faults = together.faults + alone.faults + flows.faults
    if not faults and options.directory is None:
        shutil.rmtree(root)
    else:
        print(f"everything is in {root}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
