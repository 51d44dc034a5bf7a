"""A pipeline killed at the two moments at which a training has no checkpoint that speaks for it."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_project import TINY, Project, new_project
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")]


def small_project(root: Path, **train: Any) -> Project:
    project = new_project(root, {**TINY, "train": {**TINY["train"], **train}})
    project.dvc("repro", "tokenize")
    return project


def runs_of(project: Project) -> list[tuple[str, str]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("gpt2")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [(run.info.run_id, run.info.status) for run in runs]


def test_a_training_killed_after_its_end_is_not_trained_again(tmp_path: Path) -> None:
    project = small_project(tmp_path / "project")
    project.run(sys.executable, "-m", "tasks.finetune")  # its end; DVC never hears of it
    best = project.root / "models/best/model.safetensors"
    weights, (run,) = best.read_bytes(), runs_of(project)
    output = project.dvc("repro", "finetune").stdout
    assert "written again" in output
    assert "evaluation at step" not in output
    assert best.read_bytes() == weights
    assert runs_of(project) == [run]

    output = project.dvc("repro", "--force", "--single-item", "finetune").stdout
    assert "evaluation at step" in output, "asked for a new training, it got the old one's result"
    assert len(runs_of(project)) == 2


def test_an_extended_training_killed_after_its_end_is_not_trained_again(tmp_path: Path) -> None:
    project = small_project(tmp_path / "project")
    project.dvc("repro", "finetune")
    recorded = project.report("metrics/train.json")
    assert recorded["extended_at"] is None
    longer = {**TINY["train"]["stop"], "target_loss": None, "max_steps": 3 * recorded["steps"]}
    project.set_params({**TINY, "train": {**TINY["train"], "stop": longer}})
    extended = project.run(sys.executable, "-m", "tasks.finetune").stdout  # its end; DVC never hears of it
    assert f"resuming after step {recorded['steps']}" in extended
    assert f"another length was planned until step {recorded['steps']}" in extended
    best = project.root / "models/best/model.safetensors"
    weights = best.read_bytes()
    output = project.dvc("repro", "finetune").stdout
    assert "written again" in output
    assert "evaluation at step" not in output
    assert best.read_bytes() == weights
    assert project.report("metrics/train.json")["extended_at"] == recorded["steps"]


def test_a_training_killed_before_its_first_checkpoint_leaves_no_run_behind(tmp_path: Path) -> None:
    stop = {"max_steps": 3000, "target_loss": None, "metric": "train_ema"}
    project = small_project(tmp_path / "project", checkpoint_interval=5000, eval_interval=5000, stop=stop)
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.finetune"], cwd=project.root, env=project.environment, stdout=subprocess.DEVNULL
    )
    database, logs = project.root / "mlruns/mlflow.db", project.root / "logs"
    wait_until(lambda: database.exists() and list(logs.glob("training_log_*")) and runs_of(project), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ((killed, status),) = runs_of(project)
    assert status == "RUNNING"
    project.set_params({**TINY, "train": {**TINY["train"], "checkpoint_interval": 5000, "eval_interval": 5000}})
    project.dvc("repro", "finetune")
    assert runs_of(project) == [(killed, "FINISHED")]
