"""What earlier versions wrote keeps loading: files of every released format, committed as they were then.

A new format gets a folder of its own beside v1 (`python -m tests.golden.make tests/golden/vN`); v1 stays for good.
The losses after a checkpoint's step were recorded anew, once: steps have other seeds since, so dropout other masks.
"""

import shutil
from pathlib import Path

import pytest
import torch

from gpt2core.data import tokens
from gpt2core.data.examples.template import TEMPLATES
from gpt2core.data.tokens import open_tokens
from gpt2core.model import GPT
from gpt2core.storage.files import read_json
from gpt2core.tokenizer import Tokenizer
from gpt2core.training import checkpoint
from tests.golden.make import IDS, RUN_ID, TEXT, logits, losses, trainer

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = sorted(GOLDEN.glob("v*"))
EXAMPLES = GOLDEN / "examples-v2"
CLOSE = 1e-4  # other processors and thread counts round otherwise


@pytest.fixture(params=FORMATS, ids=lambda folder: folder.name)
def golden(request, tmp_path: Path) -> Path:
    """A copy: reading a checkpoint may set files aside."""
    return Path(shutil.copytree(request.param, tmp_path / "golden"))


def assert_logits(model, expected) -> None:
    torch.testing.assert_close(torch.tensor(logits(model)), torch.tensor(expected), atol=CLOSE, rtol=0)


def test_there_are_golden_files_of_the_formats_that_are_written_today() -> None:
    newest = read_json(FORMATS[-1] / "expected.json")["versions"]
    assert newest == {"checkpoint": checkpoint.FORMAT_VERSION, "tokens": tokens.FORMAT_VERSION}


def test_an_earlier_token_set_opens_whole_and_gives_the_tokens_it_was_made_of(golden: Path) -> None:
    opened = open_tokens(golden / "tokens")
    opened.verify()
    expected = read_json(golden / "expected.json")["tokens"]
    read = {name: opened.split(name).read(0, len(opened.split(name))).tolist() for name in expected}
    assert read == expected
    assert Tokenizer().decode(read["train"]).startswith(TEXT[1])  # the shuffled first document
    assert opened.split("train").document_starts[0] == 0


def test_an_earlier_token_set_of_examples_opens_whole_with_its_answers() -> None:
    opened, expected = open_tokens(EXAMPLES / "tokens"), read_json(EXAMPLES / "expected.json")
    opened.verify()
    assert opened.manifest["format_version"] == expected["version"] == tokens.EXAMPLES_VERSION
    for name, ids in expected["tokens"].items():
        split = opened.split(name)
        assert split.has_answers
        assert split.read(0, len(split)).tolist() == ids
        assert split.answers(0, len(split)).tolist() == expected["answers"][name]
    assert TEMPLATES["chat"].jinja == expected["template"]  # how a model directory is recognised


def test_an_earlier_model_directory_gives_the_logits_that_were_recorded(golden: Path) -> None:
    expected = read_json(golden / "expected.json")["logits"]
    assert_logits(GPT.from_pretrained(golden / "model").eval(), expected)
    assert torch.tensor(expected).shape == (len(IDS), len(IDS[0]), 32)


def test_an_earlier_checkpoint_is_whole_and_its_training_goes_on(golden: Path) -> None:
    expected = read_json(golden / "expected.json")
    step = golden / "checkpoints" / f"step-{expected['saved_step']:08d}"
    checkpoint.verify_checkpoint(step)
    assert_logits(GPT.from_pretrained(step).eval(), expected["logits"])
    run = trainer(golden / "checkpoints")
    assert run.resume()
    assert (run.step, run.extra["run_id"]) == (expected["saved_step"], RUN_ID)
    run.fit()
    assert losses(run) == pytest.approx(expected["losses"], abs=CLOSE)


def test_an_earlier_registered_model_loads_without_pickle_and_gives_its_logits(golden: Path, monkeypatch) -> None:
    import mlflow.pytorch

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pytorch.load_model((golden / "registered").as_uri())
    assert_logits(model, read_json(golden / "expected.json")["logits"])
