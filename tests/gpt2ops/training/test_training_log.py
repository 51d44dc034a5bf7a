"""What a training says: on the console, in its log file and on the page of its MLflow run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from gpt2ops.params.schema import Params
from gpt2ops.training.log import ProgressBar, TrainingLog
from gpt2ops.training.pace import Pace
from gpt2ops.training.references import LossReference, published_for
from gpt2ops.training.run import describe_saved
from tests.support.training import make_trainer

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = LossReference(50257, 6.25, published_for(7_000_000, "bundled"))
EVALUATION = {
    "step": 600, "tokens_seen": 307_200, "train_eval_loss": 4.58, "val_loss": 5.8229, "val_perplexity": 337.9,
    "val_token_accuracy": 0.197,
}  # fmt: skip


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingLog:
    monkeypatch.chdir(tmp_path)
    return TrainingLog()


def test_a_sample_cannot_steer_the_terminal(log: TrainingLog, capsys: pytest.CaptureFixture[str]) -> None:
    log.say("sample: a\x1b[2Jb")
    assert capsys.readouterr().out == "sample: a\\x1b[2Jb\n"


def test_an_evaluation_says_where_its_loss_stands(log: TrainingLog, capsys: pytest.CaptureFixture[str]) -> None:
    log.compare_with(REFERENCE)
    log.on_evaluation(dict(EVALUATION))
    log.on_evaluation({**EVALUATION, "val_loss": None})
    log.on_evaluation({**EVALUATION, "val_loss": 200.0, "val_perplexity": 7.2e86})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == REFERENCE.lines()
    assert lines[2] == (
        "evaluation at step 600, 307,200 tokens seen: train_eval_loss 4.5800, val_loss 5.8229, val_perplexity 337.9, "
        "val_token_accuracy 19.7%, below token frequencies by 0.43"
    )
    assert lines[3].endswith("train_eval_loss 4.5800, below token frequencies by 1.67")
    assert "val_perplexity 7.2e+86, " in lines[4]
    assert [line[21:] for line in log.path.read_text().splitlines()] == lines


def test_a_run_interrupted_before_its_first_step_resumes_from_the_checkpoint_it_says_is_saved(
    log: TrainingLog, tmp_path: Path
) -> None:
    first = make_trainer(tmp_path)
    first.interrupted = lambda: True
    first.listeners = (log,)
    stopped = first.fit()
    assert (stopped.stop_reason, stopped.steps) == ("interrupted", 0)
    assert describe_saved(first.saved_step, stopped.steps) == "the checkpoint is saved"
    again = make_trainer(tmp_path)
    again.listeners = (log,)
    assert again.resume()
    again.fit()
    starts = [line for line in log.path.read_text().splitlines() if " tokens a step, " in line]
    assert [start[21:].split(":")[0] for start in starts] == ["starting", "resuming after step 0"]


def trainer_at(step: int) -> Any:
    return SimpleNamespace(step=step, total_steps=1200, tokens_per_step=512, learning_rate=2.4e-3, smoothed_loss=4.2)


@pytest.mark.parametrize(
    ("columns", "facts"),
    [
        (120, "  loss 4.200  lr 2.4e-03  {speed} tok/s  at most {left} left"),
        (80, "  loss 4.200  {speed} tok/s  at most {left} left"),
        (50, "  loss 4.200"),
        (20, "  loss 4.200"),
    ],
)
def test_the_bar_shows_what_fits_beside_it(columns: int, facts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "steps_per_second", 10.0)
    monkeypatch.setattr(Pace, "seconds_for", lambda self, steps: 131.0)
    line = ProgressBar()._line(trainer_at(340), columns)
    assert line == "training |{bar}| step {n_fmt}/{total_fmt}" + facts.format(speed="5,120", left="02:11")


def test_speed_is_that_of_the_last_steps_and_an_evaluation_between_them_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("gpt2ops.training.pace.time.monotonic", lambda: now[0])
    pace = Pace()
    pace.start(500)  # of a run that was resumed
    assert (pace.steps_per_second, pace.seconds_for(10)) == (0.0, None)
    for step in range(501, 521):
        now[0] += 60.0 if step == 510 else 0.5
        pace.tick(step)
    assert pace.steps_per_second == pytest.approx(2.0)
    assert pace.seconds_for(20) == pytest.approx(69.5)


STAGES = "from tasks import download, tokenize, finetune; download.main(); tokenize.main(); finetune.main()"


@pytest.mark.slow
def test_a_learning_rate_of_ten_is_warned_of_on_the_console_and_on_the_page_of_the_run(tmp_path: Path) -> None:
    project = tmp_path
    (project / "text.txt").write_text((ROOT / "data/corpus/shakespeare-plays.txt").read_text()[:20_000])
    values = Params().model_dump(by_alias=True)
    values["run"]["threads"] = 1
    values["data"] |= {"source": "text.txt", "split_by": "tokens"}
    values["model"] |= {"block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16}
    values["train"] |= {
        "optimizer": "adamw", "learning_rate": 10.0, "warmup_steps": 5, "batch_size": 4, "sequence_length": 16,
        "log_interval": 1, "eval_interval": 40, "eval_batches": 1, "sample_tokens": 0, "checkpoint_interval": 1000,
        "compile": "off",
    }  # fmt: skip
    values["train"]["stop"] |= {"max_steps": 60, "target_loss": None}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "GPT2_"))}
    done = subprocess.run(
        [sys.executable, "-c", STAGES], cwd=project, capture_output=True, text=True, check=False,
        env={**kept, "PYTHONPATH": str(ROOT), "GPT2_FLOW_RUN_ID": "flow-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    output = done.stdout
    warnings = [line for line in output.splitlines() if line.startswith("warning: ")]
    text = "above the 10.82 of a uniform guess; try a train.learning_rate ten times lower"
    assert sum(text in warning for warning in warnings) == 1, warnings
    (log,) = (project / "logs").glob("training_log_*.txt")
    assert all(warning in log.read_text() for warning in warnings)

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlruns/mlflow.db")
    status = json.loads((project / "logs/live_status.json").read_text())
    found = client.get_run(status["run_id"])
    assert json.loads(found.data.tags["warnings"]) == warnings
    page = next((project / "mlruns").rglob("warnings.txt"))
    assert page.read_text().splitlines() == warnings
    assert found.data.metrics["reference/uniform_loss"] == pytest.approx(10.825, abs=0.001)
    assert 4 < found.data.metrics["reference/unigram_loss"] < 7
    assert found.data.tags["loss_reference"] in output
    assert (status["step"], status["total_steps"], status["warnings"]) == (60, 60, len(warnings))
