"""A project without a training, for the tests of the commands that look after one."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import main

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID", "PREFECT_API_URL", "PREFECT_PROFILE")


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Commands:
    """Runs `gpt2 ...` in this process; whatever it raises but for its exit fails the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["gpt2", *arguments])
        self._capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        output = self._capsys.readouterr()
        return Result(code, output.out, output.err)


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
