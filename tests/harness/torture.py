"""Kills real small pipelines at random moments, and looks whether anything was lost: `python -m tests.harness.torture`.

A project is trained once without a kill. Then copies of it are run by `dvc repro` again and again, each killed at a
random moment by a random signal to a random process, until one of the runs is let through. Its weights, its history and
what MLflow has of it must be those of the run that was never killed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from gpt2core.storage.files import read_json, sha256_file
from gpt2ops.pipeline.lockfile import mend
from tests.support.small_project import TINY, Project, copy_sources

OVERRIDES: dict[str, Any] = {
    **TINY,
    "run": {"threads": 1, "precision": "fp32"},
    "model": {**TINY["model"], "drop_rate": 0.1},
    "train": {
        **TINY["train"], "micro_batch_size": 2, "checkpoint_interval": 7, "eval_interval": 20,
        "stop": {"max_steps": 150, "target_loss": None},
    },
}  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # half of them cannot be heard
VICTIMS = ("dvc", "stage", "all")
MARK = "GPT2_TORTURE"
# What a stage writes while it is not whole; a kill that waits for one of these lands in the middle of a save.
HALF_WRITTEN = (".partial", ".tmp", ".db-journal", ".db-wal")
PATIENCE = 120.0  # seconds for every process to be gone, on a machine that tortures several projects at once
MOMENTS = (0.1, 0.25, 0.5)  # of a whole run: the latest that a kill comes
GLANCE = 0.1  # seconds between two looks at the processes


@dataclass
class Tally:
    """What happened; `faults` is what the promise says stays empty."""

    kills: Counter[str] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    projects: int = 0
    mended: int = 0  # files of DVC's own that a kill had cut off
    faults: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        return sum(self.kills.values())

    def summary(self) -> str:
        by = ", ".join(f"{count} {name}" for name, count in sorted(self.kills.items()))
        during = ", ".join(f"{count} {name}" for name, count in self.stages.most_common())
        faults = "".join(f"\nFAULT {fault}" for fault in self.faults)
        return (
            f"{self.killed} kills in {self.projects} projects, {len(self.faults)} faults\n"
            f"of DVC's own files cut off, set aside and made anew: {self.mended}\n"
            f"by: {by}\nduring: {during}{faults}"
        )


@dataclass(frozen=True)
class Outcome:
    """All that a kill must not change."""

    weights: str
    history: list[dict[str, Any]]
    logged_steps: list[int]
    evaluation: dict[str, Any]


class Torture:
    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed, self.tally, self.lock = root, seed, Tally(), threading.Lock()
        # Where this runs in the background of a script, its children would ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.template = root / "template"
        self.template.mkdir(parents=True)
        copy_sources(self.template)
        (self.template / "mlruns").mkdir(exist_ok=True)
        whole = self._project("whole")
        started_at = time.monotonic()
        whole.dvc("repro")
        self.seconds = time.monotonic() - started_at
        self.expected = outcome_of(whole)

    def _project(self, name: str) -> Project:
        shutil.copytree(self.template, self.root / name)
        project = Project(self.root / name, OVERRIDES)
        project.environment[MARK] = str(project.root)
        project.dvc("config", "--local", "core.no_scm", "true")
        return project

    def run(self, kills: int, jobs: int) -> Tally:
        """At least `kills` of them, over as many projects as it takes, `jobs` projects at a time."""
        with ThreadPoolExecutor(jobs) as pool:
            for worker in [pool.submit(self._work, kills) for _ in range(jobs)]:
                worker.result()
        return self.tally

    def _work(self, kills: int) -> None:
        while self.tally.killed < kills:
            with self.lock:
                number = self.tally.projects
                self.tally.projects += 1
            self._torment(number, kills)
            print(f"{self.tally.killed} of {kills} kills, {len(self.tally.faults)} faults", flush=True)

    def _torment(self, number: int, kills: int) -> None:
        """One project, killed several times, and then let through."""
        project, chance = self._project(f"project-{number}"), random.Random(f"{self.seed} {number}")
        for _ in range(chance.randint(4, 16)):
            if self.tally.killed >= kills or not self._kill_once(project, chance):
                break
        self._let_through(project)
        if not any(fault.startswith(f"{project.root}:") for fault in self.tally.faults):
            shutil.rmtree(project.root)

    def _kill_once(self, project: Project, chance: random.Random) -> bool:
        """Start the pipeline and kill it; False where it came to its end before."""
        log = (project.root / "torture.log").open("a")
        mended = mend(project.root)  # as `make run`, `gpt2` and the flow do; DVC alone refuses to go on
        with self.lock:
            self.tally.mended += len(mended)
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"], cwd=project.root, env=project.environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        self._wait_for_the_moment(process, project.root, chance)
        number, victim = chance.choice(SIGNALS), chance.choice(VICTIMS)
        family = descendants(process)
        stage = next((name for p in family if (name := stage_name(p))), "dvc")
        hit = {"dvc": family[:1], "stage": [p for p in family[1:] if stage_name(p)] or family[:1], "all": family}
        alive = [target for target in hit[victim] if send(target, number)]
        if not alive:
            log.close()
            process.wait()
            return False
        with self.lock:
            self.tally.kills[f"{signal.Signals(number).name} to {victim}"] += 1
            self.tally.stages[stage] += 1
        log.write(f"--- {signal.Signals(number).name} to {victim} during {stage}\n")
        log.close()
        self._wait_for_end(project, process)
        # Half of the users start again at once, beside what may still be leaving.
        if chance.random() < 0.5:
            self._wait_until_gone(project)
        return True

    def _wait_for_the_moment(self, process: "subprocess.Popen[bytes]", root: Path, chance: random.Random) -> None:
        deadline = time.monotonic() + chance.uniform(0.0, chance.choice(MOMENTS) * self.seconds)
        in_a_save = chance.random() < 0.5
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005 if in_a_save else 0.02)
            if in_a_save and time.monotonic() > deadline - 0.3 * self.seconds and half_written(root):
                return

    def _wait_for_end(self, project: Project, process: "subprocess.Popen[bytes]") -> None:
        """DVC hears SIGINT only once its stages have left."""
        for _ in range(int(PATIENCE / GLANCE)):  # counted, not timed: the whole torture may be paused
            if process.poll() is not None:
                return
            time.sleep(GLANCE)
        self._fault(project, f"dvc repro went on for {PATIENCE:.0f} s after a signal")

    def _wait_until_gone(self, project: Project) -> None:
        for _ in range(int(PATIENCE / GLANCE)):
            if not (left := marked(project.environment[MARK])):
                break
            time.sleep(GLANCE)
        else:
            self._fault(project, f"orphans after {PATIENCE:.0f} s: {left}")

    def _let_through(self, project: Project) -> None:
        self._wait_until_gone(project)
        with self.lock:
            self.tally.mended += len(mend(project.root))
        result = project.dvc("repro", check=False)
        with (project.root / "torture.log").open("a") as log:
            log.write(result.stdout + result.stderr)
        output = (project.root / "torture.log").read_text(errors="replace")
        if result.returncode != 0:
            self._fault(project, f"dvc repro failed: {result.stderr.strip().splitlines()[-3:]}")
            return
        # Python itself shows one where Ctrl-C meets it before it has started.
        if any(f'File "{project.root}/{name}' in output for name in ("gpt2core", "gpt2ops", "tasks")):
            self._fault(project, "a traceback of ours in the log")
        if "up to date" not in project.dvc("status").stdout:
            self._fault(project, "DVC holds an output for stale after a whole run")
        try:
            found = outcome_of(project)
        except Exception as error:  # whatever is missing is the finding
            self._fault(project, f"nothing to compare: {error!r}")
            return
        for name, value in vars(self.expected).items():
            if getattr(found, name) != value:
                self._fault(project, f"{name} differ from those of the run that was never killed")

    def _fault(self, project: Project, what: str) -> None:
        self.tally.faults.append(f"{project.root}: {what}")
        print(self.tally.faults[-1], flush=True)


def outcome_of(project: Project) -> Outcome:
    """Raises AssertionError where the run is not FINISHED, not alone, or not registered."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    record, registered = read_json(project.root / "models/run.json"), project.report("registered.json")
    experiment = client.get_experiment_by_name("gpt2")
    runs = client.search_runs([experiment.experiment_id])
    statuses = {run.info.run_id: run.info.status for run in runs}
    assert statuses == {record["run_id"]: "FINISHED"}, statuses
    champion = client.get_model_version_by_alias("gpt2", "champion")
    assert (str(champion.version), champion.run_id) == (registered["version"], record["run_id"])
    history = [
        {k: v for k, v in row.items() if k != "tokens_per_second"} for row in project.report("training_history.json")
    ]
    return Outcome(
        weights=sha256_file(project.root / "models/best/model.safetensors"),
        history=history,
        logged_steps=sorted(p.step for p in client.get_metric_history(record["run_id"], "learning_rate")),
        evaluation=json.loads((project.root / "reports/metrics/evaluate.json").read_text()),
    )


def descendants(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        top = psutil.Process(process.pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def send(target: psutil.Process, number: int) -> bool:
    """Whether there was somebody to hear it."""
    try:
        target.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def stage_name(process: psutil.Process) -> str | None:
    try:
        return next((word for word in process.cmdline() if word.startswith("tasks.")), None)
    except psutil.Error:
        return None


def marked(name: str) -> list[str]:
    """Processes that still run for the project `name`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()[-3:]))
        except psutil.Error:
            continue
    return found


def half_written(root: Path) -> bool:
    return any(
        name.endswith(HALF_WRITTEN)
        for place in ("models", "data", "reports", "mlruns")
        for _, folders, files in os.walk(root / place)
        for name in (*folders, *files)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="projects at a time")
    parser.add_argument("--directory", type=Path, default=None, help="where projects with a fault stay")
    arguments = parser.parse_args()
    root = arguments.directory or Path(tempfile.mkdtemp(prefix="torture-"))
    tally = Torture(root, arguments.seed).run(arguments.kills, arguments.jobs)
    print(tally.summary())
    if tally.faults:
        sys.exit(1)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
