"""The stage `register` on a real SQLite store, with a tiny GPT, checked from fresh processes outside the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow.pytorch
import numpy as np
import pytest
import torch

import tasks.register as stage
from gpt2core.config import GPTConfig
from gpt2core.data.tokens import open_split, open_tokens
from gpt2core.data.writer import write_tokens
from gpt2core.decoding import generate
from gpt2core.errors import UserError
from gpt2core.evaluation.blocks import BLOCK_TOKENS, Blocks, blocks_of
from gpt2core.model import GPT
from gpt2core.storage.files import read_json, write_json
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.registry import register as registering
from gpt2ops.registry.download import registered_model_directory
from gpt2ops.registry.held_out import rounded
from gpt2ops.registry.scoring.gate_score import gate_score, protocol
from gpt2ops.registry.scoring.losses_file import GATE, write_losses
from gpt2ops.reporting.summary import print_summary, summary_lines
from gpt2ops.store.address import tracking_uri
from gpt2ops.store.client import connect
from gpt2ops.tracking.api import start_run

slow = pytest.mark.slow
REPOSITORY = Path(__file__).parents[3]
BLOCK_SIZE = 16
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """A project's folder with what the stages before `register` leave behind, but for their run."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    paths.PARAMS.write_text("run: {seed: 1}\n")
    write_tokens(paths.TOKENS, ["What the first run was trained on. "] * 40, source="test", shares=SHARES)
    write_outputs(seed=0, perplexity=20.0)
    write_json(paths.RUN, {"run_id": "0" * 32, "run_name": "run-0"})
    return tmp_path


@pytest.fixture
def project(outputs):
    """The same with a run in the store."""
    finished_run(seed=0, perplexity=20.0)
    return outputs


def finished_run(seed, perplexity, **evaluation):
    write_outputs(seed, perplexity, **evaluation)
    # Another recipe, for of one recipe no seed is better than another.
    paths.PARAMS.write_text(f"run: {{seed: 1}}\ntrain: {{learning_rate: {(seed + 1) * 1e-3}}}\n")
    with start_run(load_params(), run_name=f"run-{seed}") as run:
        write_json(paths.RUN, run.record("gpt2"))


def held_out_blocks(data_sha256):
    """Those of the text in data/tokens where it is that; else ten of the usual size."""
    if open_tokens(paths.TOKENS).manifest["sha256"] == data_sha256:
        text = open_split(paths.TOKENS, "test")
        return blocks_of(len(text), text.document_starts)
    return Blocks(np.arange(11) * BLOCK_TOKENS, f"{BLOCK_TOKENS} tokens")


def write_outputs(seed, perplexity, data_sha256="ab" * 32, **evaluation):
    torch.manual_seed(seed)
    shutil.rmtree(paths.BEST_MODEL, ignore_errors=True)
    model = GPT(GPTConfig(50257, BLOCK_SIZE, n_layer=1, n_head=2, n_embd=8, drop_rate=0.1))
    model.save_pretrained(paths.BEST_MODEL)
    blocks = held_out_blocks(data_sha256)
    tokens = int(blocks.edges[-1])
    gate = {
        "split": "test",
        "perplexity": perplexity,
        "tokens": tokens - 1,
        "split_tokens": tokens - 1,
        "first_tokens": tokens,
        "data_sha256": data_sha256,
        "protocol": protocol(tokens),
    }
    losses = blocks.losses(np.full(tokens - 1, np.log(perplexity)))
    write_losses(paths.BLOCK_LOSSES, {"test": losses, GATE: losses}, gate)
    score = {"loss": 3.0, "perplexity": perplexity, "bits_per_byte": 1.5, "token_accuracy": 0.3, "tokens": 100}
    write_json(
        paths.EVALUATE_METRICS,
        {
            "train": score,
            "val": score,
            "test": score,
            "gate": gate,
            "verbatim_recall": 0.02,
            "generalisation_gap": 0.5,
            "verdict": "generalising",
            "held_out": "test",
            "data_sha256": data_sha256,
            **evaluation,
        },
    )
    write_json(
        paths.TRAIN_METRICS,
        {"steps": 80, "tokens_seen": 1600, "train_loss": 3.9, "target_loss": 4.0, "target_reached": True},
    )


def registered():
    stage.main()
    return read_json(paths.REGISTERED)


def in_a_fresh_process(code, folder):
    """Run `code` where nothing but MLFLOW_TRACKING_URI is set and the project cannot be imported."""
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "LD_LIBRARY_PATH")}
    environment |= {"MLFLOW_TRACKING_URI": tracking_uri(), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    hidden = "import sys; sys.modules.update(dict.fromkeys(['gpt2ops', 'tasks', 'flows']))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", hidden + code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@slow
def test_a_stranger_loads_the_champion_and_gets_the_trained_models_logits(project, tmp_path_factory):
    report = registered()
    assert (report["version"], report["text_version"], report["alias"]) == ("1", "1", "champion")
    assert report["gate"]["reasons"] == [
        "There was no champion yet. Its held-out perplexity is 20.00, on all 5,119 tokens of test."
    ]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    code = f"""
sys.modules["gpt2core"] = None
import mlflow.pytorch, numpy, torch
model = mlflow.pytorch.load_model("models:/gpt2@champion")
for batch, length in ((1, 1), (1, {BLOCK_SIZE}), (5, 2), (2, {BLOCK_SIZE})):
    ids = torch.arange(batch * length).reshape(batch, length)
    with torch.no_grad():
        numpy.save(f"logits_{{batch}}_{{length}}.npy", model(ids).numpy())
"""
    in_a_fresh_process(code, elsewhere)
    trained = GPT.from_pretrained(paths.BEST_MODEL)
    files = sorted(elsewhere.glob("logits_*.npy"))
    assert len(files) == 4
    for file in files:
        batch, length = map(int, file.stem.split("_")[1:])
        with torch.no_grad():
            wanted = trained(torch.arange(batch * length).reshape(batch, length)).numpy()
        np.testing.assert_allclose(np.load(file), wanted, atol=1e-5)
    decode_as_the_trained_model_does(trained)
    code = """
import mlflow.pyfunc
model = mlflow.pyfunc.load_model("models:/gpt2-text@champion")
options = {"max_new_tokens": 5, "seed": 7, "past_block_size": "slide"}
rows = model.predict([{"prompt": "ROMEO."}, {"prompt": "<|endoftext|>"}, {"prompt": "word " * 50}], params=options)
again = model.predict([{"prompt": "ROMEO."}], params=options)
search = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3, "no_repeat_ngram_size": 2}
assert model.predict([{"prompt": "ROMEO."}], params=search)[0].startswith("ROMEO.")
import json; print(json.dumps([rows, again]))
"""
    rows, again = json.loads(in_a_fresh_process(code, elsewhere))
    assert rows[0].startswith("ROMEO.")
    assert rows[0] == again[0], "a text must not depend on the other rows"
    assert rows[1].startswith("<|endoftext|>")
    assert rows[2].startswith("word " * 50), "a prompt longer than the model's positions comes back whole"
    check_run_and_version(report)


def decode_as_the_trained_model_does(trained):
    """`generate` takes what mlflow.pytorch.load_model gives: no cache, no class of ours."""
    version = connect().get_model_version_by_alias("gpt2", "champion")
    loaded = mlflow.pytorch.load_model(connect().get_model_version_download_uri("gpt2", version.version))
    prompts = [[1, 2, 3], [4], [5, 6, 7, 5, 6]]
    for options in (
        {"repetition_penalty": 1.3},
        {"do_sample": True, "seed": 3, "num_return_sequences": 2},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 2},
    ):
        expected = generate(trained, prompts, max_new_tokens=6, **options)
        assert torch.equal(generate(loaded, prompts, max_new_tokens=6, **options), expected), options


def check_run_and_version(report):
    client = connect()
    version = client.get_model_version_by_alias("gpt2", "champion")
    assert version.run_id == report["run_id"]
    assert version.tags["gate"] == "passed"
    assert version.tags["held_out_perplexity"] == "20.0"
    assert "no champion yet" in version.description
    assert client.get_run(report["run_id"]).info.status == "FINISHED"
    names = {item.path for item in client.list_artifacts(report["run_id"])}
    assert {"params.yaml", "reports", "checkpoints"} <= names
    assert registered_model_directory("models:/gpt2@champion").joinpath("model.safetensors").exists()
    with pytest.raises(UserError, match="models:/gpt2@nobody"):
        registered_model_directory("models:/gpt2@nobody")
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert not Path("mlflow.db").exists(), "MLflow made a second store in the working directory"


@slow
def test_a_worse_model_is_a_challenger_and_a_better_one_takes_the_place(project):
    registered()
    finished_run(seed=1, perplexity=25.0)
    worse = registered()
    assert (worse["version"], worse["alias"], worse["gate"]["passed"]) == ("2", "challenger", False)
    assert worse["gate"]["reasons"][0].startswith(
        "Held-out perplexity is worse: 25.00 against 20.00 of the champion (version 1), on all 5,119 tokens of test"
    )
    assert worse["comparison"]["difference"] == pytest.approx(np.log(25 / 20))
    assert worse["comparison"]["promoted_because"] is None
    assert aliases() == {"champion": "1", "challenger": "2"}
    again = registered()
    assert again["version"] == "2", "the same weights of the same run must not become a second version"
    finished_run(seed=2, perplexity=15.0)
    better = registered()
    assert (better["version"], better["alias"]) == ("3", "champion")
    assert aliases() == {"champion": "3", "challenger": "3"}
    assert better["comparison"]["interval"][1] < 0
    assert better["comparison"]["blocks"] == 10
    assert better["comparison"]["promoted_because"] == better["gate"]["reasons"][0]


@slow
def test_of_one_recipe_another_seed_does_not_take_the_place(project):
    registered()
    settings = paths.PARAMS.read_text()
    write_outputs(seed=1, perplexity=15.0)
    paths.PARAMS.write_text(settings.replace("seed: 1", "seed: 2"))
    with start_run(load_params(), run_name="another seed") as run:
        write_json(paths.RUN, run.record("gpt2"))
    report = registered()
    assert report["alias"] == "challenger"
    assert "which of two seeds does better is luck" in report["gate"]["reasons"][0]


def aliases(name="gpt2"):
    found = {}
    for alias in ("champion", "challenger"):
        found[alias] = connect().get_model_version_by_alias(name, alias).version
    return {alias: str(version) for alias, version in found.items()}


@slow
def test_a_champion_measured_on_other_data_is_measured_again_or_stays(project):
    registered()
    manifest = write_tokens(
        paths.TOKENS,
        ["To be, or not to be, that is the question. " * 800],
        source="test",
        shares={"train": 0.5, "val": 0.0, "test": 0.5},
        split_by="tokens",
    )
    finished_run(seed=1, perplexity=20.0, data_sha256=manifest["sha256"])
    report = registered()
    # A tiny untrained champion guesses uniformly: perplexity near 50257.
    assert report["champion"] is True
    assert "measured again on this data" in report["gate"]["reasons"][0]
    torch.manual_seed(0)
    first = GPT(GPTConfig(50257, BLOCK_SIZE, n_layer=1, n_head=2, n_embd=8, drop_rate=0.1)).eval()
    text = open_split(paths.TOKENS, "test")
    again = gate_score(first, text, BLOCK_SIZE, len(text)).perplexity
    shown = re.search(r"against ([\d.]+) of the champion", report["gate"]["reasons"][0])
    assert shown is not None
    assert rounded(float(shown[1])) == rounded(again)
    champion = connect().get_model_version_by_alias("gpt2", "champion")
    shutil.rmtree(Path(connect().get_model_version_download_uri("gpt2", champion.version).removeprefix("file://")))
    finished_run(seed=2, perplexity=10.0, data_sha256="cd" * 32)
    report = registered()
    assert (report["champion"], report["alias"]) == (False, "challenger")
    assert "It cannot be compared with the champion (version 2)" in report["gate"]["reasons"][0]


def scenes(count):
    """Texts that share no passage."""
    return ["".join(f"scene {number} line {line} " for line in range(20)) for number in range(count)]


def split_text(text):
    return write_tokens(paths.TOKENS, text, source="test", shares=SHARES, split_by="tokens")


@slow
def test_a_champion_that_may_have_trained_on_the_held_out_text_is_not_compared(project):
    text = scenes(300)
    manifest = split_text(text)
    finished_run(seed=1, perplexity=20.0, data_sha256=manifest["sha256"])
    assert registered()["champion"]

    finished_run(seed=2, perplexity=2.0, data_sha256=split_text(text[::-1])["sha256"])
    report = registered()
    assert (report["champion"], report["alias"]) == (False, "challenger")
    reason = report["gate"]["reasons"][0]
    assert "It cannot be compared with the champion (version 1): it may have trained on this held-out text" in reason
    shown = re.search(r"\((\d+)% of its passages", reason)
    assert shown is not None
    assert int(shown[1]) > 50, "all but the passages across the border of two scenes"
    assert aliases()["champion"] == "1"

    assert split_text(text) == manifest
    finished_run(seed=3, perplexity=19.0, data_sha256=manifest["sha256"])
    assert registered()["champion"], "on one split the scores are compared as they are"
    assert aliases()["champion"] == "3"


@slow
def test_a_champion_of_whose_training_text_nothing_is_kept_is_not_compared_on_other_data(project, monkeypatch):
    with monkeypatch.context() as earlier:  # as a version without passage hashes registers
        earlier.setattr(registering, "log_passages", lambda run: None)
        assert registered()["champion"]
    finished_run(seed=1, perplexity=2.0, data_sha256=split_text(scenes(60))["sha256"])
    report = registered()
    assert not report["champion"]
    assert "no hashes of the text that it was trained on were kept" in report["gate"]["reasons"][0]


@slow
def test_nothing_is_registered_when_the_check_fails(project, monkeypatch):
    write_expected = registering.write_expected

    def expect_another_model(model, file):
        torch.manual_seed(99)
        write_expected(GPT(model.config).eval(), file)

    monkeypatch.setattr(registering, "write_expected", expect_another_model)
    with pytest.raises(UserError, match=r"no version was registered.*logits.*differ") as caught:
        stage.main()
    assert "\n" not in str(caught.value)
    assert connect().search_model_versions() == []
    assert not paths.REGISTERED.exists()
    assert connect().get_run(read_json(paths.RUN)["run_id"]).info.status == "FAILED"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (paths.EVALUATE_METRICS, r"reports/metrics/evaluate\.json is missing: run the stage evaluate first"),
        (paths.TRAIN_METRICS, r"reports/metrics/train\.json is missing: run the stage finetune first"),
        (paths.BEST_MODEL / "model.safetensors", r"model\.safetensors is missing: run the stage finetune first"),
        (paths.RUN, r"models/run\.json is missing: run the stage finetune first"),
    ],
)
def test_a_missing_piece_is_named_with_the_stage_that_makes_it(outputs, path, message):
    path.unlink()
    with pytest.raises(UserError, match=message) as caught:
        stage.main()
    assert "\n" not in str(caught.value)


def test_a_damaged_report_is_named(outputs):
    paths.EVALUATE_METRICS.write_text("{")
    with pytest.raises(UserError, match="evaluate.json is damaged"):
        stage.main()


def test_without_a_run_there_is_no_summary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no finished run yet"):
        summary_lines()


def test_the_summary_says_where_things_are_and_what_to_do_next(outputs):
    write_json(
        paths.REGISTERED,
        {
            "name": "gpt2",
            "version": "3",
            "text_name": "gpt2-text",
            "text_version": "3",
            "alias": "challenger",
            "gate": {"reasons": ["Held-out perplexity is worse."]},
        },
    )
    text = "\n".join(summary_lines())
    for needed in (
        "80 steps",
        "target 4 reached",
        "test 20.0",
        "gpt2 version 3 (challenger)",
        "Held-out perplexity is worse.",
        "reports/samples.md",
        'gpt2 generate --model models/best --prompt "ROMEO."',
        "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db",
    ):
        assert needed in text
    print_summary()


def test_the_summary_of_a_flow_run_names_what_outlives_its_folder(outputs, monkeypatch):
    monkeypatch.setenv("GPT2_FLOW_RUN_ID", "a")
    names = {"name": "gpt2", "version": "3", "text_name": "gpt2-text", "text_version": "3", "alias": "challenger"}
    write_json(paths.REGISTERED, {**names, "gate": {"reasons": ["Held-out perplexity is worse."]}})
    text = "\n".join(summary_lines())
    assert "gpt2 generate --model models:/gpt2/3" in text
    assert str(paths.SAMPLES_PAGE) not in text
    assert "models/best" not in text


def test_the_summary_starts_fast_because_it_loads_neither_torch_nor_mlflow():
    code = (
        "import sys, gpt2ops.reporting.summary; "
        "print([name for name in ('torch', 'mlflow', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr
