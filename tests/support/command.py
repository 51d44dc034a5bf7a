"""The gpt2 command, in this process or as a program of its own, in a folder of its own."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpt2ops.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-c", "from gpt2ops.cli.main import main; main()"]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Of output that has one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def is_one_line(self, message: str, code: int = 1) -> bool:
        """Whether it ended with `code` and this one line on standard error."""
        return (self.code, self.out, len(self.err.strip().splitlines())) == (code, "", 1) and message in self.err


def run_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setattr(sys, "argv", ["gpt2", *arguments])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return Result(code, captured.out, captured.err)


def environment() -> dict[str, str]:
    """Ours, without what would point at another store or project."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "GPT2_", "DVC_"))}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
