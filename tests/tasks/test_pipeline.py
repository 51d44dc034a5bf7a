"""A whole small pipeline through the real DVC and MLflow, in a copy of the project."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2core.storage.files import read_json
from gpt2ops.params import recipes
from tests.support.small_project import ROOT, TINY, Project, copy_sources, new_project
from tests.support.waiting import HANGS, wait_until

TRAIN_KEYS = {
    "steps",
    "tokens_seen",
    "epochs",
    "train_loss",
    "best_train_loss",
    "train_loss_full",
    "val_loss",
    "best_val_loss",
    "best_step",
    "best_by",
    "target_loss",
    "target_reached",
    "stop_reason",
    "tokens_per_second",
    "wall_seconds",
    "device",
    "precision",
    "n_params",
    "train_tokens",
    "batches_per_epoch",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone in which `dvc repro` has run once and was committed."""
    project = new_project(tmp_path_factory.mktemp("clone") / "project", TINY, git=True)
    project.dvc("repro")
    project.git("add", "-A")
    project.git("commit", "-qm", "first run")
    return project


def test_every_stage_leaves_its_outputs_and_dvc_is_content(project: Project) -> None:
    assert "up to date" in project.dvc("status").stdout
    train, evaluation, registered = (
        project.report(name) for name in ("metrics/train.json", "metrics/evaluate.json", "registered.json")
    )
    assert set(train) >= TRAIN_KEYS
    assert (train["stop_reason"], train["target_reached"]) == ("target_loss", True)
    assert evaluation["test"]["perplexity"] < evaluation["before"]["test"]["perplexity"]
    assert registered["champion"]
    assert {path.name for path in (project.root / "reports/plots").iterdir()} >= {"loss.png", "learning_rate.png"}
    log = next((project.root / "logs").glob("training_log_*.txt")).read_text()
    for words in (
        "device cpu",
        "parameters",
        "tokens: ",
        "batches an epoch",
        "new best",
        "saved to",
        "stopped: target",
    ):
        assert words in log


def test_an_unchanged_pipeline_runs_nothing(project: Project) -> None:
    output = project.dvc("repro").stdout
    assert "Running stage" not in output
    assert "up to date" in output


def test_a_changed_recipe_asks_for_another_training(project: Project) -> None:
    recipe = project.root / Path(recipes.__file__).relative_to(ROOT)
    source = recipe.read_bytes()
    try:
        recipe.write_bytes(source + b"# changed\n")
        assert "modified:           gpt2ops/params\n" in project.dvc("status", "finetune").stdout
    finally:
        recipe.write_bytes(source)
    assert "up to date" in project.dvc("status").stdout


def test_transformers_loads_the_best_model_and_its_tokenizer_offline(project: Project, offline: None) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gpt2core import GPT, Tokenizer

    directory = project.root / "models/best"
    text = "O Romeo, Romeo! wherefore art thou?"
    ids = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == Tokenizer().encode(text)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(directory).eval()(ids).logits
        torch.testing.assert_close(GPT.from_pretrained(directory)(ids), theirs, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_every_recipe_makes_a_pipeline_that_dvc_accepts(project: Project) -> None:
    try:
        for recipe in (project.root / "recipes").glob("*.yaml"):
            shutil.copy(recipe, project.root / "params.yaml")
            assert "register" in project.dvc("stage", "list").stdout
            assert "train.learning_rate" in project.dvc("params", "diff", "HEAD").stdout
    finally:
        project.git("checkout", "-q", "params.yaml")


def test_one_mlflow_run_has_everything_of_the_execution(project: Project, monkeypatch) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.root}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("gpt2")
    (run,) = client.search_runs([experiment.experiment_id])
    record = read_json(project.root / "models/run.json")
    assert (run.info.run_id, run.info.status) == (record["run_id"], "FINISHED")
    assert run.data.params["train.batch_size"] == "4"
    assert len(run.data.params) > 60
    history = project.report("training_history.json")
    points = client.get_metric_history(run.info.run_id, "val_loss")
    logged = {point.step: point.value for point in points if point.step}
    assert logged == {row["step"]: row["val_loss"] for row in history if row["val_loss"] is not None}
    assert {"data_sha256", "git_commit", "dvc_lock_sha256"} <= set(run.data.tags)
    assert run.inputs.dataset_inputs
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"params.yaml", "dvc.lock", "plots", "samples", "logs", "report.html", "report.pdf"} <= artifacts


@pytest.mark.slow
def test_dvc_compares_metrics_params_and_experiments(project: Project) -> None:
    assert "train_loss" in project.dvc("metrics", "show").stdout
    project.dvc("exp", "run", "-S", "train.learning_rate=0.02", "-n", "faster")
    assert "0.02" in project.dvc("params", "diff", "HEAD").stdout
    assert json.loads(project.dvc("metrics", "diff", "HEAD", "--json").stdout)
    assert "faster" in project.dvc("exp", "show", "--csv").stdout
    plots = json.loads(project.dvc("plots", "show", "--json").stdout)
    assert not plots.get("errors")
    points = [point for plot in plots["data"]["loss"] for point in plot["content"]["data"]["values"]]
    assert {point["field"] for point in points} == {"train_loss", "val_loss"}
    project.git("checkout", "-q", ".")
    assert "Running stage" not in project.dvc("repro").stdout.replace("Running stage 'register'", "")


@pytest.mark.slow
def test_a_second_clone_pulls_everything_without_computing(project: Project, tmp_path: Path) -> None:
    project.dvc("remote", "add", "--local", "-d", "store", str(tmp_path / "remote"))
    project.dvc("push")
    project.run("git", "clone", "-q", str(project.root), str(tmp_path / "second"))
    second = Project.__new__(Project)
    second.root, second.environment = tmp_path / "second", project.environment
    second.dvc("remote", "add", "--local", "-d", "store", str(tmp_path / "remote"))
    second.dvc("pull")
    assert "Running stage" not in second.dvc("repro").stdout
    best = "models/best/model.safetensors"
    assert (second.root / best).read_bytes() == (project.root / best).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": {"source": "data/corpus/missing.txt"}}, "missing.txt"),
        ({"train": {"sequence_length": 64}}, r"train.sequence_length (64) must not exceed the model's block_size (32)"),
        ({"train": {"batch_size": 100_000}}, "batch_size"),
    ],
)
def test_bad_input_is_one_line_and_leaves_earlier_results(project: Project, overrides, message) -> None:
    before = (project.root / "reports/registered.json").read_bytes()
    project.set_params({**TINY, **{key: {**TINY[key], **value} for key, value in overrides.items()}})
    try:
        result = project.dvc("repro", check=False)
    finally:
        project.git("checkout", "-q", "params.yaml")
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert message in output
    assert "Traceback" not in output
    assert (project.root / "reports/registered.json").read_bytes() == before
    assert "up to date" in project.dvc("status").stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_a_killed_training_resumes_to_the_same_weights_in_the_same_mlflow_run(project: Project, tmp_path: Path) -> None:
    root = tmp_path / "unzipped"  # no git here: an unzipped download
    root.mkdir()
    copy_sources(root)
    slow = {
        **TINY,
        "train": {**TINY["train"], "checkpoint_interval": 20, "stop": {"max_steps": 300, "target_loss": None}},
    }
    unzipped = Project(root, slow)
    unzipped.dvc("config", "--local", "core.no_scm", "true")
    unzipped.dvc("repro", "tokenize")
    command = [sys.executable, "-m", "tasks.finetune"]
    process = subprocess.Popen(command, cwd=root, env=unzipped.environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list((root / "models").glob("checkpoints/*/step-*")), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=HANGS)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "checkpoint is saved" in errors
    assert not (root / "models/best").exists()
    output = unzipped.dvc("repro").stdout
    assert "resuming after step" in output
    resumed = (root / "models/best/model.safetensors").read_bytes()
    history = unzipped.report("training_history.json")
    assert [row["step"] for row in history] == list(range(1, 301))

    uninterrupted = new_project(tmp_path / "whole", slow)
    uninterrupted.dvc("repro", "finetune")
    assert (uninterrupted.root / "models/best/model.safetensors").read_bytes() == resumed

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("gpt2").experiment_id])
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "learning_rate")]
    assert sorted(steps) == list(range(1, 301))
