"""The sample stage: its settings, what it measures of each text, its page, and the table in MLflow."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.storage.files import write_json
from gpt2core.tokenizer import Tokenizer
from gpt2ops.params.decoding import STRATEGIES, DecodingSetting
from gpt2ops.params.schema import Params, parse_params
from gpt2ops.params.sections import SampleSetting
from gpt2ops.pipeline import paths
from gpt2ops.sampling.page import TABLE, log_samples, samples_page
from gpt2ops.sampling.samples import measure, write_samples
from gpt2ops.sampling.texts import Text
from gpt2ops.store.client import connect
from gpt2ops.tracking.api import start_run

TOKENIZER = Tokenizer()
ROOT = Path(__file__).resolve().parents[3]


class Split:
    def __init__(self, token_ids: list[int]) -> None:
        self.tokens = np.array(token_ids, dtype=np.uint16)

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]


def with_settings(*settings: dict[str, Any], **sample: Any) -> dict[str, Any]:
    named = [{"name": f"s{number}", **setting} for number, setting in enumerate(settings)]
    return {"sample": {"prompts": ["A"], "max_new_tokens": 12, **sample, "settings": named}}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"decoding": "sample", "top_p": 1.5}, "sample.settings[1].top_p (1.5) must be a number above 0 and at most 1"),
        ({"decoding": "beam", "num_beams": 0}, "sample.settings[1].num_beams (0) must be"),
        ({"decoding": "sample", "temperature": 0}, "sample.settings[1].temperature (0) must be at least"),
        ({"decoding": "sample", "temperature": True}, "sample.settings[1].temperature (true): input should be"),
        (
            {"decoding": "beam", "num_beams": 2, "num_sequences": 3},
            "sample.settings[1].num_sequences (3) is above sample.settings[1].num_beams (2)",
        ),
        ({"decoding": "greedy", "seed": -1}, "sample.settings[1].seed (-1) must be a whole number of at least 0"),
        ({"decoding": "greedy", "top_p": 0.5}, "settings[1].top_p (0.5) does not belong to greedy decoding"),
        ({"decoding": "greedy", "topp": 0.5}, "unknown key sample.settings[1].topp; did you mean top_p?"),
        ({"decoding": "gredy"}, "sample.settings[1].decoding ('gredy'): input should be 'greedy'"),
        ({"name": "s0"}, "sample.settings[1].name ('s0') is that of sample.settings[0] already"),
        ({"name": "two words"}, "sample.settings[1].name ('two words')"),
        ({"stop": [""]}, "sample.settings[1].stop (['']) has an empty text"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_its_key(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_params(with_settings({"decoding": "greedy"}, setting), source="params.yaml")
    assert str(error.value).startswith("params.yaml: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_is_needed_and_a_prompt_is_unicode() -> None:
    with pytest.raises(UserError, match=r"sample.settings\[0\].name is missing"):
        parse_params({"sample": {"settings": [{"decoding": "greedy"}]}})
    with pytest.raises(UserError, match=r"sample.prompts: prompt 2: character 1 \(U\+D800\) is a lone surrogate"):
        parse_params({"sample": {"prompts": ["a", "b\ud800"]}})


def test_settings_are_checked_without_torch() -> None:
    code = "import sys, gpt2ops.params.schema; gpt2ops.params.schema.load_params(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"  # a second and a half that the other stages need not wait


def in_range(key: str, value: float) -> bool:
    """Whether the library takes the value, in the first strategy that has the key."""
    decoding = next((name for name, strategy in STRATEGIES.items() if key in strategy.keys), "sample")
    enough = {"num_beams": 8, "num_beam_groups": 8} if key == "num_beam_groups" else {}
    try:
        DecodingSetting.model_validate({"decoding": decoding, "max_new_tokens": 10, **enough, key: value})
    except ValidationError:
        return False
    return True


def test_bounds_at_submission_are_those_of_the_library() -> None:
    checked = 0
    for key, schema in DecodingSetting.model_json_schema()["properties"].items():
        for branch in schema.get("anyOf", []):
            step = 1 if branch.get("type") == "integer" else 1e-7
            for bound in branch.keys() & {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}:
                edge, outwards = branch[bound], step if "max" in bound.lower() else -step
                assert not in_range(key, edge + outwards), (key, bound)
                assert in_range(key, edge) == (not bound.startswith("exclusive")), (key, bound)
                checked += 1
    assert checked > 20


def test_prefect_refuses_a_setting_out_of_range_at_submission() -> None:
    from prefect.utilities.schema_tools.validation import ValidationError as Refused
    from prefect.utilities.schema_tools.validation import validate

    from flows.fine_tune import fine_tune

    schema = fine_tune.parameters.model_dump()
    good = {"name": "n", "decoding": "sample", "top_p": 0.5, "early_stopping": None}
    validate({"sample": {"settings": [good]}}, schema, raise_on_error=True)
    for wrong, named in (({"top_p": 1.5}, "1.5"), ({"topp": 0.5}, "topp"), ({"decoding": "gredy"}, "gredy")):
        with pytest.raises(Refused, match=named):
            validate({"sample": {"settings": [{**good, **wrong}]}}, schema, raise_on_error=True)


def test_a_strategy_has_its_own_defaults_and_null_takes_a_limit_away() -> None:
    setting = DecodingSetting(decoding="sample", top_k=None, num_sequences=2, stop=["\n"])
    assert setting.options() == {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": None,
        "top_p": 0.95,
        "num_return_sequences": 2,
        "stop_strings": ["\n"],
    }
    assert DecodingSetting(decoding="contrastive").options() == {"penalty_alpha": 0.6, "top_k": 4}


def test_a_bad_word_is_banned_after_a_blank_as_well() -> None:
    options = DecodingSetting(decoding="greedy", bad_words=["king"]).options(TOKENIZER)
    assert options["bad_words_ids"] == [TOKENIZER.encode("king"), TOKENIZER.encode(" king")]


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(3)
    return GPT(GPTConfig(50257, 32, n_layer=1, n_head=2, n_embd=16)).eval()


@pytest.fixture
def stage_model(model: GPT, monkeypatch: pytest.MonkeyPatch) -> GPT:
    monkeypatch.setattr("gpt2ops.sampling.samples.best_model", lambda: model)
    return model


def greedy(model: GPT, prompt: str, count: int) -> list[int]:
    ids = TOKENIZER.encode(prompt)
    return generate(model, [ids], max_new_tokens=count)[0, len(ids) :].tolist()


def test_every_prompt_gets_every_setting_and_each_text_says_how_it_came(stage_model: GPT) -> None:
    settings = [{"decoding": "greedy"}, {"decoding": "sample", "num_sequences": 2, "seed": 7, "max_new_tokens": 5}]
    params = parse_params(with_settings(*settings, prompts=["A", "B and more", ""]))
    samples = write_samples(params, Split([1, 2, 3]))["samples"]
    assert [(one["setting"], one["prompt"], one["seed"]) for one in samples] == [
        *(("s0", prompt, None) for prompt in ("A", "B and more", "")),
        *(("s1", prompt, seed) for prompt in ("A", "B and more", "") for seed in (7, 8)),
    ]
    assert [one["tokens"] for one in samples] == [12] * 3 + [5] * 6
    assert samples[1]["text"] == TOKENIZER.decode(greedy(stage_model, "B and more", 12))
    assert all(one["mean_log_prob"] < 0 for one in samples)
    again = write_samples(params, Split([1, 2, 3]))["samples"]
    assert again == samples


def test_a_text_is_as_long_as_fits_unless_the_window_slides(stage_model: GPT) -> None:
    slide = {"decoding": "greedy", "past_block_size": "slide"}
    params = parse_params(with_settings({"decoding": "greedy"}, slide, prompts=["A B C"], max_new_tokens=40))
    samples = write_samples(params, Split([1]))["samples"]
    assert [one["tokens"] for one in samples] == [32 + 1 - 3, 40]
    long = parse_params(with_settings({"decoding": "greedy"}, prompts=["A " * 60]))
    with pytest.raises(UserError, match="sample.prompts: 'A A .* has .* more than the model's block_size"):
        write_samples(long, Split([1]))


def test_the_mean_log_probability_is_that_of_the_model(stage_model: GPT) -> None:
    params = parse_params(with_settings({"decoding": "beam", "num_beams": 3}))
    (sample,) = write_samples(params, Split([1]))["samples"]
    new = generate(stage_model, [TOKENIZER.encode("A")], num_beams=3, max_new_tokens=12)[0, 1:]
    logits = stage_model(torch.cat([torch.tensor(TOKENIZER.encode("A")), new])[None, :-1])[0]
    expected = logits.log_softmax(-1).gather(1, new[:, None]).mean().item()
    assert sample["mean_log_prob"] == pytest.approx(expected, abs=1e-4)


def test_a_memorised_sample_says_so(stage_model: GPT) -> None:
    said = greedy(stage_model, "A", 12)
    train = Split([9, 9, *said[2:10], 9])  # eight of its twelve tokens stand in the training text
    params = parse_params(with_settings({"decoding": "greedy"}, memorised_tokens=8))
    samples = write_samples(params, train)
    (sample,) = samples["samples"]
    assert (sample["overlap_tokens"], sample["memorised"]) == (8, True)
    assert sample["overlap_text"] == TOKENIZER.decode(said[2:10])
    page = samples_page(samples)
    assert "**Memorised texts: 1 of 1** (at least 8 consecutive tokens of the training text)." in page
    assert "**Memorised.**" in page
    other = parse_params(with_settings({"decoding": "greedy"}, memorised_tokens=9))
    assert "emorised" not in samples_page(write_samples(other, train))


def text_of(text: str) -> Text:
    token_ids = TOKENIZER.encode(text)
    return Text(text, token_ids, len(token_ids), -1.0, "length")


def test_a_run_of_blanks_is_nobodys_text() -> None:
    train = Split(TOKENIZER.encode("Exit." + " " * 50 + "To be, or not to be"))
    blank = measure(text_of("Romeo" + " " * 40 + "to be so"), train, 20, TOKENIZER)
    assert (blank["overlap_text"], blank["memorised"]) == (" to be", False)
    copied = measure(text_of("x" + " " * 40 + "To be, or not to be"), train, 5, TOKENIZER)
    assert (copied["overlap_text"], copied["memorised"]) == (" To be, or not to be", True)


def test_no_text_has_no_numbers_and_the_page_stands() -> None:
    empty = measure(Text("", [], 1, -3.0, "eos"), Split([1, 2]), 5, TOKENIZER)
    assert (empty["distinct_1"], empty["overlap_tokens"], empty["memorised"]) == (None, 0, False)
    entry = {"prompt": "```\nA prompt\n" * 20, "setting": "s", "seed": None, **empty}
    page = samples_page(
        {"settings": {"s": {}}, "max_new_tokens": 5, "seed": 1, "memorised_tokens": 5, "samples": [entry]}
    )
    assert "````text" in page  # the text's own fence does not end the block
    assert max(len(line) for line in page.splitlines() if line.startswith("## ")) < 90


def test_the_table_in_mlflow_is_that_of_the_last_run_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(ROOT / "params.yaml", paths.PARAMS)
    connect()
    rows = [{"prompt": "A", "setting": "greedy", "text": "é", "memorised": False, "mean_log_prob": None}]
    with start_run(Params(), run_name="small") as run:
        for texts in ([*rows, *rows], rows):
            write_json(paths.SAMPLES, {"samples": texts})
            log_samples(run)
    client = connect()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    mlflow.set_experiment("gpt2")
    table = mlflow.load_table(TABLE, run_ids=[run.run_id])
    assert table[["prompt", "text"]].to_numpy().tolist() == [["A", "é"]]
    tables = json.loads(client.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"])
    assert tables == [{"path": TABLE, "type": "table"}]


def test_a_setting_keeps_only_what_was_written() -> None:
    setting = SampleSetting.model_validate({"name": "a", "decoding": "sample", "top_k": None})
    assert setting.model_dump() == {"name": "a", "decoding": "sample", "top_k": None}
