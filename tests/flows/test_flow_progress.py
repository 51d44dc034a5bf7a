"""What a flow run shows while it trains, and that it trains on where that cannot be shown."""

import socket
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.engine import progress
from flows.engine.services import MLFLOW_PAGE
from gpt2ops.training.status import STATUS, LiveStatus, read_status, write_status

STATUS_NOW = LiveStatus(
    step=120,
    total_steps=1200,
    loss=4.2134,
    tokens_per_second=4912.3,
    seconds_left=131.0,
    run_id="abc",
    experiment_id="1",
    warnings=0,
)


def test_a_status_is_one_sentence_and_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / STATUS
    assert read_status(file) is None
    write_status(STATUS_NOW, file)
    status = read_status(file)
    assert status == STATUS_NOW
    assert status.percent == 10.0
    assert status.sentence() == "step 120 of at most 1,200, loss 4.213, 4,912 tokens/s, at most 2:11 left"
    for damage in ("", "{", "[]", '{"step": 1}'):
        file.write_text(damage)
        assert read_status(file) is None


def test_the_link_goes_to_the_server_that_shows_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(MLFLOW_PAGE, raising=False)
    assert progress.run_page(STATUS_NOW) is None
    monkeypatch.setenv(MLFLOW_PAGE, "http://127.0.0.1:5000")
    assert progress.run_page(STATUS_NOW) == "http://127.0.0.1:5000/#/experiments/1/runs/abc"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.org/")
    page = progress.run_page(STATUS_NOW)
    assert page is not None
    assert page.startswith("https://")
    assert "secret" not in page


def test_a_training_goes_on_where_prefect_does_not_answer_and_it_is_said_once(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    said: list[str] = []
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{closed}/api"}):
        shown = progress.FlowProgress([("tokenize", 1.0), ("finetune", 3.0)], said.append)
        shown.started("finetune")
        with shown.of_training(tmp_path):
            write_status(STATUS_NOW, tmp_path / STATUS)
        shown.finished("finetune")
    assert len(said) == 1
    assert "the run continues" in said[0]
