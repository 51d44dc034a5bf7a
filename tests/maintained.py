"""A project without a training, for the tests of the commands that look after one."""

import shutil
from pathlib import Path

import pytest

from tests.command import Result, run_here

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID", "PREFECT_API_URL", "PREFECT_PROFILE")


class Commands:
    """Runs `gpt2 ...` in this process; whatever it raises but for its exit fails the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Result:
        self._capsys.readouterr()
        return run_here(self._capsys, self._monkeypatch, *arguments)


def write_project(root: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (root / "logs").mkdir()


def in_project(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if typed there, with nothing configured."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(root / "no-prefect"))
    monkeypatch.chdir(root)
