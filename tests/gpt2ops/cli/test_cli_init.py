"""`gpt2 init`: a project on the user's own text."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gpt2ops.params import recipes
from gpt2ops.params.schema import Params, load_params
from gpt2ops.pipeline.code_version import code_root, digest
from tests.support.command import PROGRAM, ROOT, environment, run_here
from tests.support.small_project import copy_sources

TEXT = "Once upon a time there was a fox. It lived in a wood, and the wood was old.\n" * 40


@pytest.fixture
def gpt2(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(TEXT)
    return lambda *arguments: run_here(capsys, monkeypatch, *arguments)


def test_without_a_text_it_is_the_default_run_on_the_bundled_plays(gpt2, tmp_path: Path) -> None:
    result = gpt2("init", "plays")
    assert result.code == 0, result.err
    assert load_params(tmp_path / "plays/params.yaml") == Params()
    assert (tmp_path / "plays/data/corpus/shakespeare-plays.txt").stat().st_size > 1_000_000
    assert "next:  cd plays && dvc repro" in result.out


def test_the_text_comes_along_and_settings_keep_their_comments(gpt2, tmp_path: Path) -> None:
    assert gpt2("init", "novel", "--train-file", "my.txt", "--preset", "tinystories").code == 0
    project = tmp_path / "novel"
    assert (project / "data/corpus/my.txt").read_text() == TEXT
    params = load_params(project / "params.yaml")
    assert params.data.source == "data/corpus/my.txt"
    assert params.model.preset == "tinystories"
    assert params.sample.prompts == ["Once upon a time", ""]
    assert params.train.stop.target_loss is None, "4.4 is the target of the bundled plays"
    ours, theirs = ((root / "params.yaml").read_text().count("#") for root in (project, code_root()))
    assert ours == theirs


def test_from_released_weights_it_trains_gently(gpt2, tmp_path: Path) -> None:
    assert gpt2("init", "novel", "--train-file", "my.txt", "--model", "gpt2-medium").code == 0
    params = load_params(tmp_path / "novel/params.yaml")
    assert (params.model.init, params.train.optimizer) == ("gpt2-medium", "adamw")
    assert params.train.learning_rate < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("git", [False, True], ids=["without git", "in a git repository"])
def test_dvc_runs_its_stages(gpt2, tmp_path: Path, git: bool) -> None:
    if git:
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert gpt2("init", "novel", "--train-file", "my.txt").code == 0
    project = tmp_path / "novel"
    run = lambda *command: subprocess.run(  # noqa: E731
        [sys.executable, "-m", "dvc", *command], cwd=project, env=environment(), capture_output=True, text=True
    )
    done = run("repro", "tokenize")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "data/tokens/manifest.json").is_file()
    assert "Running stage" not in run("repro", "tokenize").stdout
    names = run("stage", "list").stdout
    assert all(stage in names for stage in ("finetune", "evaluate", "register"))
    if git:
        tracked = subprocess.run(["git", "add", "-nA"], cwd=tmp_path, capture_output=True, text=True).stdout
        assert "novel/dvc.lock" in tracked
        assert "data/tokens" not in tracked


def test_a_change_of_a_stages_code_changes_that_stages_digest_alone(tmp_path: Path) -> None:
    for name in ("tasks/a.py", "tasks/b.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    before = [digest([name], tmp_path) for name in ("tasks/a.py", "tasks/b.py")]
    (tmp_path / "tasks/a.py").write_text("x = 2\n")
    after = [digest([name], tmp_path) for name in ("tasks/a.py", "tasks/b.py")]
    assert (before[0] != after[0], before[1] == after[1]) == (True, True)
    assert before[0] != before[1], "the name counts"


@pytest.mark.slow
def test_an_update_that_changes_a_recipe_asks_for_another_training(gpt2, tmp_path: Path) -> None:
    assert gpt2("init", "novel", "--train-file", "my.txt").code == 0
    project, code = tmp_path / "novel", tmp_path / "code"
    code.mkdir()
    copy_sources(code)
    for name in ("params.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, code)
    stage = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]["finetune"]
    for path in (*stage["deps"], *stage["outs"], *(name for kind in ("metrics", "plots") for name in stage[kind][0])):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("{}")
    run = lambda *command: subprocess.run(  # noqa: E731
        [sys.executable, *command], cwd=project, env={**environment(), "PYTHONPATH": str(code)}, capture_output=True,
        text=True, check=True,
    ).stdout  # fmt: skip
    update = ("-c", PROGRAM[-1], "init", ".", "--update")
    run("-m", "dvc", "commit", "--force", "finetune")
    run(*update)
    assert "code.yaml" not in run("-m", "dvc", "status", "finetune"), "the same code"
    with (code / Path(recipes.__file__).relative_to(ROOT)).open("a") as recipe:
        recipe.write("# changed\n")
    run(*update)
    assert "code.yaml" in run("-m", "dvc", "status", "finetune")


def test_update_brings_the_stages_up_to_date_and_leaves_the_settings(gpt2, tmp_path: Path) -> None:
    gpt2("init", "novel", "--train-file", "my.txt")
    project = tmp_path / "novel"
    code = (project / "code.yaml").read_text()
    (project / "code.yaml").write_text("finetune: of-an-earlier-version\n")
    (project / "dvc.yaml").write_text("stages: {}\n")
    (project / "params.yaml").write_text("run: {seed: 7}\n")
    assert gpt2("init", "novel", "--update").code == 0
    assert (project / "code.yaml").read_text() == code
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    assert {"code.yaml": ["finetune"]} in stages["finetune"]["params"]
    assert not [dep for stage in stages.values() for dep in stage["deps"] if dep.startswith(("tasks/", "gpt2core/"))]
    assert (project / "params.yaml").read_text() == "run: {seed: 7}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["full"], "full is not empty"),
        (["my.txt"], "my.txt is a file; name a folder"),
        (["new", "--train-file", "nope.txt"], "nope.txt is missing"),
        (["new", "--train-file", "empty.txt"], "empty.txt: the file is empty (0 bytes)"),
        (["new", "--train-file", "picture.png"], "cannot read this kind of file"),
        (["new", "--train-file", "latin.txt"], "byte 3 (0xE9) is not valid UTF-8"),
        (["new", "--preset", "smal"], "--preset ('smal') is unknown; did you mean small?"),
        (["new", "--model", "gpt2-mediun"], "did you mean gpt2-medium?"),
        (["new", "--update"], "new is no project"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(gpt2, tmp_path: Path, arguments, message) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    result = gpt2("init", *arguments)
    assert result.is_one_line(message), result
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_project_is_not_made_over_another(gpt2) -> None:
    gpt2("init", "novel")
    assert gpt2("init", "novel").is_one_line("novel is a project already")
