"""An unfinished run with other settings is named, with the differences; the fingerprint of earlier versions stays."""

import json
from pathlib import Path

import pytest

from gpt2ops.params.schema import parse_params
from gpt2ops.training.fingerprint import checkpoints_of, fingerprint_of, unfinished_run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def fingerprint(data: str = "aa", **train) -> dict:
    return fingerprint_of(parse_params({"train": train}), {"n_layer": 4}, data, "fp32")


def leave(fingerprint: dict, step: int, finished: str | None = None) -> Path:
    directory = checkpoints_of(fingerprint) / f"step-{step:08d}"
    directory.mkdir(parents=True)
    state = json.loads(json.dumps({"fingerprint": fingerprint, "finished": finished}))
    (directory / "trainer.json").write_text(json.dumps(state))
    return directory.parent


def line_for(fingerprint: dict) -> str | None:
    return unfinished_run(checkpoints_of(fingerprint), fingerprint)


def test_what_differs_from_the_unfinished_training_is_named_with_both_values() -> None:
    earlier = leave(fingerprint(), 250)
    assert line_for(fingerprint(data="bb", learning_rate=1e-3, min_learning_rate=1.5e-4)) == (
        "an unfinished run at step 250 is not resumed because its settings differ (the data; train.learning_rate was "
        f"0.003, is 0.001); its checkpoints stay in {earlier}, and restoring these settings resumes it"
    )


def test_nothing_is_said_of_a_training_that_has_ended_had_not_begun_or_is_this_one() -> None:
    leave(fingerprint(learning_rate=1e-3), 250, finished="max_steps")
    leave(fingerprint(learning_rate=2e-3), 0)
    leave(fingerprint(), 250)
    assert line_for(fingerprint()) is None


def test_limits_and_logging_make_no_other_training_and_a_setting_of_later_at_its_default_neither() -> None:
    first = fingerprint()
    assert "train.spike_rollback" not in first  # checkpoints of before it was there still fit
    assert fingerprint(log_interval=1, checkpoint_interval=7, keep_last=5, stop={"max_steps": 9}) == first
    assert fingerprint(spike_rollback=6.0) != first


def test_the_default_settings_keep_the_folder_that_they_had_before_there_were_newer_ones() -> None:
    """Else whoever upgrades in the middle of a run loses it."""
    newer = {"n_layer": 4, "activation_function": "gelu_new", "tie_word_embeddings": True}
    params = parse_params({"train": {"eval_interval": 200}})  # the default of then
    assert checkpoints_of(fingerprint_of(params, newer, "aa", "fp32")).name == "033ca86ab69b"
