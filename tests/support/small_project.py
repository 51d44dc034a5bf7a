"""A small project that the real pipeline runs in: a copy of the sources, a short text, a tiny model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from gpt2core.storage.files import read_json
from gpt2ops.params.schema import Params

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
    "run": {"threads": 1},
    "data": {"source": "data/corpus/tiny.txt", "split_by": "tokens"},
    "model": {"block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16},
    "train": {
        "batch_size": 4, "sequence_length": 16, "log_interval": 1, "eval_interval": 4, "eval_batches": 1,
        "sample_tokens": 2, "checkpoint_interval": 5, "compile": "off", "learning_rate": 1e-2,
        "stop": {"max_steps": 60, "target_loss": 10.6, "metric": "train_ema"},
    },
    "evaluate": {"batch_size": 4, "max_tokens": 200, "recall_passages": 2},
    "sample": {"prompts": ["A"], "max_new_tokens": 2},
}  # fmt: skip


class Project:
    def __init__(self, root: Path, overrides: dict[str, Any]) -> None:
        self.root = root
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "GPT2_", "DVC_"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        self.set_params(overrides)

    def set_params(self, overrides: dict[str, Any]) -> None:
        values = Params().model_dump(by_alias=True)
        merge(values, overrides)
        (self.root / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    def run(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        result = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    def dvc(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.run(sys.executable, "-m", "dvc", *arguments, check=check)

    def git(self, *arguments: str) -> None:
        self.run("git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments)

    def report(self, name: str) -> Any:
        return read_json(self.root / "reports" / name)


def merge(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    for key, value in overrides.items():
        if isinstance(value, dict):
            merge(values[key], value)
        else:
            values[key] = value


def new_project(root: Path, overrides: dict[str, Any], *, git: bool = False) -> Project:
    """A copy of the sources in the new folder `root`, in a repository of its own or without git."""
    root.mkdir()
    copy_sources(root)
    project = Project(root, overrides)
    if git:
        project.git("init", "-q")
    else:
        project.dvc("config", "--local", "core.no_scm", "true")
    return project


def copy_sources(root: Path) -> None:
    for name in ("gpt2core", "gpt2ops", "tasks", "flows", ".dvc", "dvc.yaml", ".dvcignore", ".gitignore", "recipes"):
        source, ignore = ROOT / name, shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local")
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=ignore)
        else:
            shutil.copy(source, root / name)
    (root / "data/corpus").mkdir(parents=True)
    text = (ROOT / "data/corpus/shakespeare-plays.txt").read_text()[:20_000]
    (root / "data/corpus/tiny.txt").write_text(text)
