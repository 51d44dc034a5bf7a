"""A project without a training, for the tests of the commands that look after one."""

import shutil
from pathlib import Path

import pytest

from gpt2ops.projects.project import write_pipeline
from gpt2ops.store.client import connect, experiment_id
from tests.support.command import Result, run_here

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID", "PREFECT_API_URL", "PREFECT_PROFILE")


class Commands:
    """Runs `gpt2 ...` in this process; whatever it raises but for its exit fails the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Result:
        self._capsys.readouterr()
        return run_here(self._capsys, self._monkeypatch, *arguments)


def write_project(root: Path) -> None:
    shutil.copy(ROOT / "params.yaml", root / "params.yaml")
    write_pipeline(root)  # as `gpt2 init` does
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "logs").mkdir()


def in_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if typed there, with nothing configured."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(root / "no-prefect"))
    monkeypatch.chdir(root)


def project_with_store(root: Path) -> Path:
    """A project with an empty store, to copy: making a store takes a second."""
    write_project(root)
    with pytest.MonkeyPatch.context() as patch:
        in_project(root, patch)
        experiment_id(connect(), "gpt2")
    return root


def copy_of(template: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a project, which is then the working directory."""
    root = folder / "project"
    shutil.copytree(template, root)
    in_project(root, monkeypatch)
    return root
