"""`gpt2 runs`, `compare` and `models` on a real store with small runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from gpt2core.evaluation.blocks import BlockLosses
from gpt2ops.params.schema import parse_params
from gpt2ops.registry.champion import champions, make_champion, read_history
from gpt2ops.registry.models import promote, registered_versions, rollback
from gpt2ops.registry.runs import find_run, list_runs
from gpt2ops.registry.scoring.losses_file import GATE, write_losses
from gpt2ops.store.client import connect, fluent_mlflow
from gpt2ops.tracking.api import start_run
from tests.support.command import run_here
from tests.support.secret_run import text_server

PERPLEXITY = {"first": 40.0, "second": 30.0, "third": 35.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """A folder with three finished runs; each has registered a version of `novel` and one of `novel-text`."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID"):
            patch.delenv(name, raising=False)
        for number, (name, perplexity) in enumerate(PERPLEXITY.items()):
            settings = {"run": {"experiment": "novels", "seed": number}, "train": {"batch_size": 8}}
            with start_run(parse_params(settings), run_name=name) as run:
                run.log_metrics({"best_val_loss": 4.0 - number / 10, "val_loss": 5.0, "steps": 100})
                if name != "third":
                    run.log_metrics({"evaluate/test_perplexity": perplexity})
                    keep_losses(run, perplexity)
                run.set_tags({"data_sha256": "ab" * 32 if name == "first" else "cd" * 32})
            register(run.run_id, name)
    return folder


def keep_losses(run, perplexity: float, blocks: int = 20, spread: float = 0.0) -> None:
    """As the stage evaluate scores 20 blocks of 512 tokens of twice as long a text."""
    noise = np.random.default_rng(0).normal(0, spread, blocks)
    losses = BlockLosses(512 * (np.log(perplexity) + noise - noise.mean()), np.full(blocks, 512), "512 tokens")
    gate = {"split": "test", "perplexity": perplexity, "tokens": 512 * blocks, "split_tokens": 1024 * blocks}
    file = Path("block_losses.safetensors")
    write_losses(file, {GATE: losses}, gate | {"data_sha256": "ab" * 32, "protocol": f"{blocks} blocks"})
    run.log_artifact(file, "reports")
    score = {
        "tokens": 5000,
        "split_tokens": 20_000,
        "perplexity_low": perplexity - 1,
        "perplexity_high": perplexity + 2,
    }
    run.log_metrics({f"evaluate/test_{key}": value for key, value in score.items()})


def register(run_id: str, weights: str) -> None:
    client = connect()
    uri = client.get_run(run_id).info.artifact_uri
    with fluent_mlflow():
        for name in ("novel", "novel-text"):
            if name not in {model.name for model in client.search_registered_models()}:
                client.create_registered_model(name)
            tags = {
                "weights_sha256": weights,
                "verdict": "generalising",
                "gate": "refused" if weights == "third" else "passed",
            }
            if weights == "third":
                tags["gate_reasons"] = "Held-out perplexity is worse: 35.00 against 30.00."
            version = client.create_model_version(name, f"{uri}/model", run_id=run_id, tags=tags)
            client.set_registered_model_alias(name, "challenger", version.version)
            if weights != "third":
                make_champion(client, name, str(version.version))


@pytest.fixture
def gpt2(store: Path, capsys, monkeypatch):
    monkeypatch.chdir(store)
    for name in ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: run_here(capsys, monkeypatch, *arguments)


def test_no_secret_goes_to_the_address_that_a_store_names_without_consent(gpt2, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_SECRET_CORPUS", "hunter2")
    with text_server(b"Words.", "", "hunter2") as server:
        source = f"http://127.0.0.1:{server.server_port}/a.txt?token=${{GPT2_SECRET_CORPUS}}"
        Path("params.yaml").write_text(yaml.safe_dump({"data": {"source": source, "sha256": "0" * 64}}))
        with start_run(parse_params({})) as run:
            pass
        refused = gpt2("rerun", run.run_id, "--any-code", "--dir", "again")
        assert (refused.code, server.asked) == (1, 0)
        assert "127.0.0.1, with the value of GPT2_SECRET_CORPUS" in refused.err
        assert "--send-secrets" in refused.err


def test_a_name_of_a_run_cannot_steer_the_terminal(gpt2, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ids = []
    for name in ("calm\x1b[2J\x9b31m", "other\rname\n\u202eemit"):
        with start_run(parse_params({}), run_name=name) as run:
            ids.append(run.run_id)
    for arguments in (["runs"], ["compare", *ids]):
        shown = gpt2(*arguments).out
        assert "calm\\x1b[2J\\x9b31m" in shown
        assert not {"\x1b", "\x9b", "\r", "\u202e"} & set(shown)
    assert gpt2("runs", "--json").json[1]["name"] == "calm\x1b[2J\x9b31m"
    assert "\x1b" not in gpt2("rerun", ids[0], "--dir", "again").err


def test_runs_are_listed_newest_first_in_eighty_columns(gpt2) -> None:
    lines = gpt2("runs").out.splitlines()
    assert [line.split()[1] for line in lines] == ["NAME", "third", "second", "first"]
    assert "3.9  " in lines[2]
    assert lines[2].endswith("30")
    assert max(map(len, lines)) <= 80
    assert len(gpt2("runs", "--limit", "1").out.splitlines()) == 2


def test_runs_are_sorted_best_first_and_those_without_the_metric_come_last(gpt2) -> None:
    found = json.loads(gpt2("runs", "--sort", "test_perplexity", "--json").out)
    assert [run["name"] for run in found] == ["second", "first", "third"]
    assert found[0]["params"]["train.batch_size"] == "8"
    assert found[0]["state"] == "done"


def test_a_run_is_found_by_id_start_name_and_registered_version(gpt2) -> None:
    (second,) = (run for run in list_runs() if run.name == "second")
    for word in (second.run_id, second.run_id[:10], "second", "models:/novel/2", "models:/novel-text@champion"):
        assert find_run(word).run_id == second.run_id


def test_two_runs_differ_in_settings_metrics_and_data(gpt2) -> None:
    text = gpt2("compare", "first", "second").out
    assert "run.seed  0" in " ".join(text.split(" ")).replace("   ", "  ")
    assert "train.batch_size" not in text, "it is the same"
    assert "-10 (-25.0%)" in text
    (data,) = (line for line in text.splitlines() if line.startswith("data"))
    assert data.split() == ["data", "abababababab", "cdcdcdcdcdcd"]
    found = json.loads(gpt2("compare", "first", "second", "--json").out)
    assert found["params"] == {"run.seed": ["0", "1"]}
    assert found["metrics"]["evaluate/test_perplexity"] == {"values": [40.0, 30.0], "difference": -10.0}


def test_a_run_and_itself_have_the_same_settings(gpt2) -> None:
    assert "all settings are the same" in gpt2("compare", "first", "first").out


def test_the_better_of_two_runs_is_named_with_the_interval_of_the_difference(gpt2) -> None:
    text = gpt2("compare", "first", "second").out
    second = find_run("second").run_id[:8]
    assert f"{second} is better: change -25.0%, 95% interval -25.0% to -25.0%, p = 0.0018, 20 blocks" in text
    assert "the first 10,240 of 20,480 tokens of test" in text
    assert "95% interval 29.0 to 32.0; the first 5,000 of 20,000 tokens" in text
    found = json.loads(gpt2("compare", "second", "first", "--json").out)["held_out"]
    assert found["difference"] == pytest.approx(np.log(40 / 30))
    assert found["interval"][0] > 0
    assert found["blocks"] == 20


def test_runs_that_cannot_be_told_apart_are_said_to_be(gpt2, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, perplexity, blocks, spread in (
        ("sure", 30.0, 20, 0.0),
        ("lucky", 29.9, 20, 0.05),
        ("one block", 25.0, 1, 0.0),
        ("one more", 24.0, 1, 0.0),
    ):
        with start_run(parse_params({}), run_name=name) as run:
            keep_losses(run, perplexity, blocks, spread)
    with start_run(parse_params({}), run_name="none"):
        pass
    assert "not enough text to tell: change -0.3%" in gpt2("compare", "sure", "lucky").out
    assert "times as much, " in gpt2("compare", "sure", "lucky").out
    assert (
        "not enough text to tell: on 1 block of text; blocks of it: 1, needed 5"
        in gpt2("compare", "one block", "one more").out
    )
    assert "equal (change +0.00%" in gpt2("compare", "sure", "sure").out
    assert "different text" in gpt2("compare", "sure", "one block").out
    without = find_run("none").run_id[:8]
    assert f"cannot compare: {without}: its run kept no losses by block" in gpt2("compare", "none", "sure").out


def test_models_are_listed_with_alias_gate_and_run(gpt2) -> None:
    lines = gpt2("models", "list", "novel").out.splitlines()
    assert [line.split()[1] for line in lines] == ["VER", "3", "2", "1"]
    assert ("challenger" in lines[1], "refused" in lines[1]) == (True, True)
    assert ("champion" in lines[2], "passed" in lines[2]) == (True, True)
    assert max(map(len, lines)) <= 80
    newest = json.loads(gpt2("models", "list", "--json").out)[-1]
    assert (newest["version"], newest["verdict"]) == ("1", "generalising")


def test_promotion_and_rollback_keep_the_history_and_take_the_text_model_along(gpt2) -> None:
    refused = gpt2("models", "promote", "novel", "3")
    assert refused.is_one_line(
        "the gate refused novel version 3: Held-out perplexity is worse: 35.00 against 30.00. --force"
    )
    assert current() == {"novel": "2", "novel-text": "2"}
    assert gpt2("models", "promote", "novel", "3", "--force").code == 0
    assert current() == {"novel": "3", "novel-text": "3"}
    promote("novel", "3", force=True)  # once more changes nothing
    assert "novel version 2 is champion" in gpt2("models", "rollback", "novel").out
    rollback("novel")
    assert current() == {"novel": "1", "novel-text": "1"}
    assert gpt2("models", "rollback", "novel").is_one_line("novel had no champion before version 1")
    history = read_history(connect().get_registered_model("novel").tags)
    assert [(change["version"], change["change"]) for change in history] == [
        ("1", "promoted"), ("2", "promoted"), ("3", "promoted"), ("2", "rolled back"), ("1", "rolled back"),
    ]  # fmt: skip
    assert champions(history) == ["1"]
    promote("novel", "2")
    assert current() == {"novel": "2", "novel-text": "2"}


def current() -> dict[str, str]:
    return {version.name: version.version for version in registered_versions() if "champion" in version.aliases}


def test_a_champion_of_a_time_without_history_can_be_rolled_back_to(gpt2) -> None:
    client = connect()
    client.create_registered_model("old")
    run = find_run("first")
    for _ in range(2):
        client.create_model_version("old", f"{client.get_run(run.run_id).info.artifact_uri}/model", run_id=run.run_id)
    client.set_registered_model_alias("old", "champion", "1")
    promote("old", "2")
    assert [version.version for version in rollback("old")] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "first", "nope"], "no run 'nope' in "),
        (["compare", "first", "models:/novel@best"], "models:/novel@best is not in "),
        (["compare", "first", "models:/novel"], "must be models:/NAME@ALIAS"),
        (["runs", "--experiment", "novel"], "--experiment ('novel') is unknown; the experiments are Default, novels"),
        (["runs", "--sort", "vall_loss"], "--sort ('vall_loss'): no run has this metric"),
        (["runs", "--limit", "0"], "--limit (0) must be at least 1"),
        (["models", "list", "nope"], "no registered model 'nope'; the registered models are novel, novel-text"),
        (["models", "promote", "novel", "9"], "novel has no version 9; it has 3, 2, 1"),
        (["rerun", "nope"], "no run 'nope'"),
    ],
)
def test_what_is_not_there_is_one_line(gpt2, arguments, message) -> None:
    assert gpt2(*arguments).is_one_line(message)


def test_a_name_that_two_runs_have_is_refused_with_their_ids(gpt2) -> None:
    with start_run(parse_params({}), run_name="twin"), start_run(parse_params({}), run_name="twin"):
        pass
    result = gpt2("compare", "twin", "first")
    assert result.is_one_line("'twin' matches 2 runs: ")
    assert all(run.run_id[:8] in result.err for run in list_runs() if run.name == "twin")


@pytest.mark.parametrize("command", [["runs"], ["models", "list"], ["compare", "a", "b"]])
def test_looking_where_nothing_is_says_so_and_creates_nothing(capsys, monkeypatch, tmp_path, command) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run_here(capsys, monkeypatch, *command).is_one_line(" here")
    assert list(tmp_path.iterdir()) == []
