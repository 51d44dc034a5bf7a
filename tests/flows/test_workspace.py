"""Each flow run works in a folder of its own and leaves the project's files alone."""

import configparser
import contextlib
import os
import socket
import subprocess
from pathlib import Path

import pytest
import yaml

from flows.engine.workspace import open_workspace, remove_workspace, write_overrides
from flows.fine_tune import child_environment
from gpt2ops.projects.project import in_git

PARAMS = """\
# What a run does.
data:
  source: bundled         # bundled | a file
model:
  init: scratch
train:
  learning_rate: 1.0e-3
  stop:
    target_loss: 4.0
    max_steps: 2000       # the schedule ends here
"""


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project as an unzipped download has it."""
    root = tmp_path / "project"
    for name, text in {
        "params.yaml": PARAMS,
        ".dvc/config": "[core]\n    analytics = false\n",
        ".dvc/.gitignore": "/config.local\n/cache\n/tmp\n",
        ".dvc/cache/files/md5/aa": "cached",
        ".gitignore": "/workspaces/\n/models/\n/mine/\n/data/raw\n",
        "gpt2ops/process/stage.py": "old\n",
        "tasks/gone.py": "old\n",
        "models/best/weights": "weights",
        "data/raw/a.txt": "raw",
        "mine/book.txt": "a book",
        "env/pyvenv.cfg": "",
        "env/bin/python": "",
    }.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.fixture
def repository(folder: Path) -> Path:
    """The same as a clone with one commit."""
    git(folder, "init", "-q")
    git(folder, "add", "-A", ".", ":!env")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def dvc_setting(workspace: Path, section: str, key: str) -> str:
    config = configparser.ConfigParser()
    config.read(workspace / ".dvc" / "config.local")
    return config[section][key]


@pytest.mark.parametrize("kind", ["folder", "repository"])
def test_overrides_reach_the_workspace_and_not_the_project(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    workspace = open_workspace(root, "run-1", {"train": {"learning_rate": 1e-5, "stop": {"max_steps": None}}})

    assert (root / "params.yaml").read_text() == PARAMS
    text = (workspace / "params.yaml").read_text()
    assert yaml.safe_load(text)["train"] == {"learning_rate": 1e-5, "stop": {"target_loss": 4.0, "max_steps": None}}
    assert "# the schedule ends here" in text


@pytest.mark.parametrize("kind", ["folder", "repository"])
def test_every_workspace_shares_the_projects_cache(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    workspace = open_workspace(root, "run-1", {})

    assert dvc_setting(workspace, "cache", "dir") == str(root / ".dvc" / "cache")
    assert dvc_setting(workspace, "core", "no_scm") == "true"
    assert not (workspace / ".dvc" / "cache").exists()


def test_a_cache_that_the_project_keeps_elsewhere_is_the_one_that_is_shared(folder: Path, tmp_path: Path) -> None:
    (folder / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {tmp_path}/big-disk\n")
    assert dvc_setting(open_workspace(folder, "run-1", {}), "cache", "dir") == f"{tmp_path}/big-disk"


def test_uncommitted_work_is_in_the_worktree(repository: Path) -> None:
    (repository / "gpt2ops/process/stage.py").write_text("edited\n")
    (repository / "tasks/gone.py").unlink()
    (repository / "tasks/new.py").write_text("new\n")
    (repository / "tasks/staged with space é.py").write_text("staged\n")
    git(repository, "add", "tasks/staged with space é.py")

    workspace = open_workspace(repository, "run-1", {})

    assert (workspace / "gpt2ops/process/stage.py").read_text() == "edited\n"
    assert not (workspace / "tasks/gone.py").exists()
    assert (workspace / "tasks/new.py").read_text() == "new\n"
    assert (workspace / "tasks/staged with space é.py").read_text() == "staged\n"
    assert not (workspace / "models").exists()


def test_a_copy_leaves_out_results_and_environments(folder: Path) -> None:
    open_workspace(folder, "run-1", {})
    workspace = open_workspace(folder, "run-2", {})

    assert (workspace / "gpt2ops/process/stage.py").read_text() == "old\n"
    for absent in ("models", "data/raw", "env", "workspaces"):
        assert not (workspace / absent).exists(), absent


@pytest.mark.parametrize("kind", ["folder", "repository"])
def test_a_retry_finds_the_checkpoints_of_its_first_attempt(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    first = open_workspace(root, "run-1", {})
    (first / "models/checkpoints").mkdir(parents=True)
    (first / "models/checkpoints/step").write_text("100")

    assert open_workspace(root, "run-1", {}) == first
    assert (first / "models/checkpoints/step").read_text() == "100"


@pytest.mark.parametrize("kind", ["folder", "repository"])
def test_a_half_made_workspace_is_made_again(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    workspace = open_workspace(root, "run-1", {})
    (workspace / ".dvc/config.local").unlink()  # it is written last
    (workspace / "gpt2ops/process/stage.py").write_text("half")

    assert (open_workspace(root, "run-1", {}) / "gpt2ops/process/stage.py").read_text() == "old\n"


def test_git_forgets_a_removed_workspace(repository: Path) -> None:
    workspace = open_workspace(repository, "run-1", {})
    remove_workspace(repository, workspace)

    assert not workspace.exists()
    assert "run-1" not in git(repository, "worktree", "list")
    assert git(repository, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.parametrize("kind", ["folder", "repository"])
def test_a_model_that_git_does_not_know_is_found_from_the_workspace(kind: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(kind)
    workspace = open_workspace(root, "run-1", {"model": {"init": "models/best"}})
    assert yaml.safe_load((workspace / "params.yaml").read_text())["model"]["init"] == str(root / "models/best")


def test_a_source_that_git_ignores_or_that_lies_outside_is_made_absolute(repository: Path) -> None:
    (repository.parent / "outside.txt").write_text("text")
    for number, (source, expected) in enumerate(
        [
            ("mine/*.txt", f"{repository}/mine/*.txt"),
            ("../outside.txt", f"{repository}/../outside.txt"),
            ("gpt2ops/process/stage.py", "gpt2ops/process/stage.py"),
            ("bundled", "bundled"),
            ("https://example.org/a.txt", "https://example.org/a.txt"),
        ]
    ):
        workspace = open_workspace(repository, f"run-{number}", {"data": {"source": source}})
        assert yaml.safe_load((workspace / "params.yaml").read_text())["data"]["source"] == expected


def test_params_without_overrides_stay_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS + "odd:   [1,2 ]\n")
    write_overrides(folder, tmp_path, {})
    assert (tmp_path / "params.yaml").read_text() == PARAMS + "odd:   [1,2 ]\n"


@pytest.mark.parametrize(
    "value", ["off", "1e-4", "null", "", "a: b # c", "two\nlines", 1e-5, 3.0e-4, None, True, ["", "no"]]
)
def test_both_readers_of_params_get_the_value_that_was_given(folder: Path, tmp_path: Path, value: object) -> None:
    from ruamel.yaml import YAML

    (tmp_path / "params.yaml").write_text(PARAMS)
    write_overrides(folder, tmp_path, {"train": {"key": value}})
    text = (tmp_path / "params.yaml").read_text()
    assert yaml.safe_load(text)["train"]["key"] == value  # the stages
    assert YAML(typ="safe").load(text)["train"]["key"] == value  # DVC


def test_a_worktree_that_git_was_killed_in_is_made_again(repository: Path) -> None:
    open_workspace(repository, "run", {})
    record = repository / ".git/worktrees/run"
    (record / "locked").write_text("initializing")
    remove_workspace(repository, repository / "workspaces/run")
    assert not record.exists()
    (open_workspace(repository, "run", {}) / ".dvc/config.local").unlink()
    (record / "locked").write_text("initializing")
    assert (open_workspace(repository, "run", {}) / "params.yaml").read_text() == PARAMS


@pytest.mark.skipif(os.name == "nt", reason="Unix's kinds of files")
@pytest.mark.parametrize("kind", ["folder", "repository"])
def test_odd_files_beside_a_project_stop_no_run(kind: str, request: pytest.FixtureRequest) -> None:
    root: Path = request.getfixturevalue(kind)
    latin = os.fsdecode(b"caf\xe9.txt")
    (root / latin).write_text("a name that is no UTF-8")
    os.mkfifo(root / "pipe")
    (root / "tasks/gone.py").unlink()
    os.mkfifo(root / "tasks/gone.py")  # in the place of a file that git knows
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(root):
        listening.bind("socket")
        closed = root / "notes"
        closed.mkdir()
        (closed / "a.txt").write_text("a")
        closed.chmod(0o555)
        workspace = open_workspace(root, "run", {})
        closed.chmod(0o755)
    assert (workspace / latin).read_text() == "a name that is no UTF-8"
    assert (workspace / "notes/a.txt").read_text() == "a"
    assert os.access(workspace / "notes", os.W_OK)
    assert not {"pipe", "socket"} & {path.name for path in workspace.iterdir()}
    remove_workspace(root, workspace)
    assert not workspace.exists()


def test_a_repository_that_the_environment_names_misleads_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    workspace = open_workspace(repository, "run", {})
    assert (workspace / "params.yaml").read_text() == PARAMS
    assert in_git(repository)
    assert not {"GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"} & child_environment("run").keys()
