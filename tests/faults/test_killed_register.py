"""The stage `register` killed at each step: `gpt2 gc` sees all that it left, and the next run registers one version."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_project import TINY, Project, new_project

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")]
GPT2 = "from gpt2ops.cli.main import main; main()"
# The stage, but that the process kills itself when `function` is called for the `call`-th time.
KILLED = """
import os, signal, sys
import tasks.register as stage
from gpt2ops.process.stage import run_stage
from gpt2ops.registry import register, versions
place, function, call = {"register": register, "versions": versions}[sys.argv[1]], sys.argv[2], int(sys.argv[3])
original, calls = getattr(place, function), []
def dying(*arguments, **options):
    calls.append(1)
    if len(calls) == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
setattr(place, function, dying)
run_stage("register", stage.main)
"""
# Where it is killed, the models that it has logged by then, and how many of them are a version.
MOMENTS = [
    (("register", "log_models", "1"), 0, 0),
    (("versions", "_log_text_model", "1"), 1, 0),
    (("register", "write_expected", "1"), 2, 0),
    (("register", "create_version", "1"), 2, 0),
    (("register", "create_version", "2"), 2, 1),
]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluated") / "project"
    project = new_project(root, TINY)
    project.dvc("repro", "evaluate", "sample", "plot")
    return root


def garbage(project: Project, *flags: str) -> list[dict[str, Any]]:
    return list(json.loads(project.run(sys.executable, "-c", GPT2, "gc", "--json", *flags).stdout)["garbage"])


def versions(project: Project) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    return sorted(f"{entry.name} {entry.version}" for entry in client.search_model_versions())


@pytest.mark.parametrize(("moment", "logged", "registered"), MOMENTS, ids=[" ".join(moment[0]) for moment in MOMENTS])
def test_what_a_killed_register_leaves_is_seen_and_the_next_one_makes_one_version(
    evaluated: Path, tmp_path: Path, moment: tuple[str, str, str], logged: int, registered: int
) -> None:
    root, temporary = tmp_path / "project", tmp_path / "temporary"
    shutil.copytree(evaluated, root, symlinks=True)
    temporary.mkdir()
    project = Project(root, TINY)
    project.environment["TMPDIR"] = str(temporary)
    project.run(sys.executable, "-c", GPT2, "relocate")
    assert project.run(sys.executable, "-c", KILLED, *moment, check=False).returncode < 0
    assert not [path for path in temporary.iterdir() if path.name.startswith(("gpt2", "tmp"))]
    models = root / "mlruns/artifacts/models"
    assert len(list(models.glob("m-*"))) == logged
    assert len(versions(project)) == registered

    found = garbage(project)
    kinds = [item["kind"] for item in found]
    assert kinds.count("models") == logged - registered
    assert [Path(item["path"]).parent for item in found if item["kind"] == "leftovers"] == [root / "logs"]
    garbage(project, "--yes")
    assert garbage(project) == []
    assert not list((root / "logs").glob(".*.partial"))
    assert len(list(models.glob("m-*"))) == registered

    project.run(sys.executable, "-m", "tasks.register")
    assert versions(project) == ["gpt2 1", "gpt2-text 1"]
    assert len(list(models.glob("m-*"))) == 2
    assert garbage(project) == []
    assert project.report("registered.json")["champion"]
