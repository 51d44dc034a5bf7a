"""An exported model is what other programs load, says what it is, and goes to a hub as it is."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2ops.publishing.export
from gpt2core.config import GPTConfig
from gpt2core.data.writer import write_tokens
from gpt2core.errors import UserError
from gpt2core.importing import import_model
from gpt2core.model import GPT
from gpt2core.storage.files import write_json
from gpt2core.tokenizer import Tokenizer
from gpt2ops.pipeline import paths
from gpt2ops.publishing import runtime_checks
from gpt2ops.publishing.export import export_model, write_files
from gpt2ops.publishing.model_card import model_card
from gpt2ops.publishing.model_facts import gather_facts
from tests.support.command import run_here
from tests.support.foreign_models import spread
from tests.support.hub_server import TOKEN, Hub, hub

ROOT = Path(__file__).resolve().parents[3]
TINY = GPTConfig(50257, 32, n_layer=2, n_head=2, n_embd=16)


DIARY = "A diary. " * 300
ALL_TRAIN = {"train": 1.0, "val": 0.0, "test": 0.0}


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    spread(GPT(TINY)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def exported(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "tiny"
    export_model(str(model_directory), directory, licence="mit", language="en")
    return directory


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        result = run_here(capsys, monkeypatch, *map(str, words))
        return result.code, result.out, result.err

    return run


@pytest.mark.slow
def test_the_command_says_what_was_checked(gpt2, model_directory: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, out, err = gpt2("export", "--model", model_directory, "--output-dir", output)
    assert code == 0, err
    lines = out.splitlines()
    assert "9 files" in lines[0]
    assert "transformers" in lines[1]
    assert "same token ids" in lines[1]
    assert "48 greedy tokens after 3 prompts equal" in lines[1]
    assert "CTranslate2" in lines[2]
    assert "48 greedy tokens after 3 prompts equal" in lines[2]
    assert "no licence yet" in lines[3]
    assert json.loads((output / "tokenizer_config.json").read_text())["model_max_length"] == 32
    assert json.loads((output / "generation_config.json").read_text())["top_p"] == 0.95
    assert (output / "model.safetensors").stat().st_mode == (output / "config.json").stat().st_mode
    again = gpt2("export", "--model", model_directory, "--output-dir", output)
    assert again[0] == 1
    assert "is not empty" in again[2]


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_smaller_weights_an_untied_head_and_the_exact_gelu_pass_the_checks(dtype: str, tmp_path: Path) -> None:
    config = GPTConfig(50257, 32, 2, 2, 16, qkv_bias=False, activation_function="gelu", tie_word_embeddings=False)
    model = spread(GPT(config))
    model.save_pretrained(tmp_path / "model")
    export = export_model(str(tmp_path / "model"), tmp_path / "out", dtype=dtype)
    assert len(export.checks) == 2
    kept = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    again = GPT.from_pretrained(tmp_path / "out")
    assert again.config == config
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name).to(kept).float())


def test_a_weight_too_large_for_half_precision_is_refused(tmp_path: Path) -> None:
    model = GPT(TINY).eval()
    with torch.no_grad():
        model.ln_f.weight[0] = 1e6
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="a weight is 1e\\+06, too large for torch.float16"):
        export_model(str(tmp_path / "model"), tmp_path / "out", dtype="fp16")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]


def test_a_failed_check_leaves_nothing(model_directory: Path, tmp_path: Path, monkeypatch) -> None:
    def with_another_tokenizer(model: GPT, directory: Path, dtype: torch.dtype) -> None:
        write_files(model, directory, dtype)
        content = json.loads((directory / "tokenizer.json").read_text("utf-8"))
        content["model"]["merges"] = content["model"]["merges"][:1000]
        write_json(directory / "tokenizer.json", content)

    monkeypatch.setattr(gpt2ops.publishing.export, "write_files", with_another_tokenizer)
    with pytest.raises(UserError, match="nothing was exported: checked in transformers .* other tokens"):
        export_model(str(model_directory), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [runtime_checks._in_transformers, runtime_checks._in_ctranslate2])
def test_each_runtime_notices_other_weights(check, model_directory: Path, exported: Path) -> None:
    other = runtime_checks._expected(spread(GPT(TINY), seed=1))
    with pytest.raises(UserError, match="greedy token|logits differ"):
        check(exported, other)
    check(exported, runtime_checks._expected(GPT.from_pretrained(model_directory)))


@st.composite
def configs(draw: st.DrawFn) -> GPTConfig:
    n_head = draw(st.sampled_from([1, 2, 3]))
    return GPTConfig(
        vocab_size=50257,
        block_size=draw(st.integers(2, 20)),
        n_layer=draw(st.integers(1, 3)),
        n_head=n_head,
        n_embd=n_head * draw(st.integers(1, 4)),
        n_inner=draw(st.none() | st.integers(1, 20)),
        drop_rate=draw(st.sampled_from([0.0, 0.1])),
        qkv_bias=draw(st.booleans()),
        layer_norm_epsilon=draw(st.sampled_from([1e-5, 1e-3])),
        activation_function=draw(st.sampled_from(["gelu_new", "gelu"])),
        tie_word_embeddings=draw(st.booleans()),
    )


@settings(max_examples=12, deadline=None)
@given(config=configs())
def test_what_is_exported_comes_back_bit_for_bit(config: GPTConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = spread(GPT(config))
    directory = tmp_path_factory.mktemp("round")
    model.save_pretrained(directory)
    again = import_model(directory).model
    # A q, k, v bias of zeros is transformers' spelling of none.
    # And a width of four times n_embd is that of n_inner None.
    found, expected = (
        {**each.as_dict(), "qkv_bias": None, "n_inner": each.feed_forward_width} for each in (again.config, config)
    )
    assert found == expected
    state = dict(again.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(state[name], parameter), name


def front_matter(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---")[1]))


def test_the_card_of_a_project_says_what_it_was_trained_on_and_remembers(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths.BEST_MODEL.parent.mkdir(parents=True)
    paths.BEST_MODEL.symlink_to(model_directory)
    write_json(paths.RUN, {"run_id": "0123", "run_name": "small-diary"})
    score = {"loss": 1.0, "perplexity": 2.71828, "bits_per_byte": 0.5, "token_accuracy": 0.75, "tokens": 1000}
    scores = {"train": {**score, "perplexity": 1.2}, "val": score, "test": score}
    measured = {"held_out": "test", "verdict": "memorising", "verbatim_recall": 0.83, "generalisation_gap": 3.0}
    write_json(paths.EVALUATE_METRICS, {**scores, **measured})
    file = {"file": "diary.txt", "size_bytes": 5, "sha256": "ab" * 32}
    source = {"source": "/home/someone/diary.txt", "licence": "all rights reserved", "size_bytes": 5, "files": [file]}
    write_json(paths.PROVENANCE, {**source, "urls": ["https://me:secret@example.org/diary.txt"]})
    write_tokens(paths.TOKENS, [DIARY], source="test", shares=ALL_TRAIN)
    facts = gather_facts("models/best", paths.BEST_MODEL, TINY)
    card = model_card(facts, repo_id="me/diary", licence="cc-by-4.0", language="de")
    head = front_matter(card)
    assert (head["license"], head["language"], head["pipeline_tag"]) == ("cc-by-4.0", "de", "text-generation")
    assert head["model-index"][0]["results"][0]["metrics"][0] == {"type": "perplexity", "value": 2.7183}
    assert "**The model has memorised its training text.**" in card
    assert "continued 83% of the tested training passages" in card
    assert "| training | 1.000 | 1.200 |  | 0.500 | 75.0% | 1,000 |" in card
    assert "| Licence of the text | all rights reserved |" in card
    assert 'model="me/diary"' in card
    assert "/home/someone" not in card
    assert "secret" not in card


def test_the_card_of_a_folder_by_finetune_has_the_numbers_of_its_run_and_none_of_other_weights(
    model_directory: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    made = folder / paths.FINETUNED
    for place in (folder, made / paths.BEST_MODEL):
        shutil.copytree(model_directory, place, dirs_exist_ok=True)
    write_json(made / paths.RUN, {"run_id": "0123", "run_name": "gpt2-diary"})
    write_json(made / paths.EVALUATE_METRICS, {"held_out": None, "verdict": "memorising", "verbatim_recall": 0.83})
    write_json(made / paths.PROVENANCE, {"source": "diary.txt", "files": []})
    write_tokens(made / paths.TOKENS, [DIARY], source="test", shares=ALL_TRAIN)
    facts = gather_facts(str(folder), folder, TINY)
    assert (facts.name, facts.verdict) == ("gpt2-diary", "memorising")
    assert facts.tokens == {"train": len(Tokenizer().encode(DIARY)), "val": 0, "test": 0}
    assert facts.metrics == {"evaluate/verbatim_recall": 0.83}
    (folder / "model.safetensors").write_bytes(b"weights of another run")
    assert gather_facts(str(folder), folder, TINY).verdict is None


def test_the_card_of_an_imported_model_names_where_it_came_from(model_directory: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "import.json", {"source": "gpt2-medium", "layout": "a Hugging Face directory"})
    card = model_card(gather_facts(str(tmp_path), tmp_path, TINY), repo_id="x", licence=None, language=None)
    assert front_matter(card)["base_model"] == "openai-community/gpt2-medium"
    assert "license" not in front_matter(card)
    assert "imported from `gpt2-medium`" in card
    assert "No scores were available when this card was written." in card
    assert "\n\n## Licence\n\nNo licence has been chosen for the weights" in card
    assert "\n\n\n" not in card


def test_push_dry_run_lists_what_would_go(gpt2, exported: Path, tmp_path: Path) -> None:
    (exported / ".env").write_text("HF_TOKEN=hf_secret")
    code, out, err = gpt2("push", exported, "me/plays", "--dry-run")
    assert code == 0, err
    assert out.startswith("would go to me/plays\n  README.md")
    assert "left out: .env" in out
    assert "card: license mit; language en" in out
    code, out, _ = gpt2("push", exported, "me/plays", "--dry-run", "--json")
    listed = json.loads(out)
    assert listed["published"] is None
    assert listed["size_bytes"] == sum(file["size_bytes"] for file in listed["files"])
    (exported / ".env").unlink()
    code, _, err = gpt2("push", exported, "me/plays", "--dry-run", "--license", "mit")
    assert code == 1
    assert "has its card already" in err


@pytest.mark.parametrize("repo_id", ["plays", "me/pl ays", "a/b/c", "me/", "me/..plays"])
def test_push_refuses_a_bad_name(gpt2, exported: Path, repo_id: str) -> None:
    code, out, err = gpt2("push", exported, repo_id, "--dry-run")
    assert (code, out) == (1, "")
    assert "is not a repository name; write OWNER/NAME" in err


def push(server: Hub, directory: Path, repo_id: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its address when it is imported."""
    # Without Xet, whose protocol only the real hub speaks, large files go as LFS objects.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": server.address, "HF_HUB_DISABLE_XET": "1"}
    command = [
        sys.executable,
        "-c",
        "from gpt2ops.cli.main import main; main()",
        "push",
        str(directory),
        repo_id,
        *flags,
    ]
    return subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True)


@pytest.mark.slow
def test_push_uploads_every_file_as_it_is(exported: Path, tmp_path: Path) -> None:
    (exported / "*").write_text("a name that is a pattern, too")
    (exported / ".env").write_text("HF_TOKEN=hf_secret")
    with hub() as server:
        result = push(server, exported, "me/plays", "--private", "--token-from-env", "MY_TOKEN", MY_TOKEN=TOKEN)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith(f"published {server.address}/me/plays")
        assert server.repositories["me/plays"]["visibility"] == "private"
        sent = [file for file in exported.iterdir() if file.name != ".env"]
        assert server.files == {f"me/plays/{file.name}": file.read_bytes() for file in sent}
        assert TOKEN not in result.stdout + result.stderr
    (exported / "*").unlink()
    (exported / ".env").unlink()


def test_push_says_in_one_line_why_a_hub_refuses(gpt2, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("GOOD", TOKEN)
    monkeypatch.setenv("WRONG", "hf_wrong_token")
    with hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        answers = [
            gpt2("push", exported, "me/plays", "--token-from-env", "WRONG"),
            gpt2("push", exported, "somebody-else/plays", "--token-from-env", "GOOD"),
        ]
    answers.append(gpt2("push", exported, "me/plays", "--token-from-env", "GOOD"))
    reasons = ["does not accept this token", "has no write access to somebody-else/plays", "cannot be reached"]
    for (code, out, err), reason in zip(answers, reasons, strict=True):
        assert (code, out) == (1, "")
        assert err.startswith(f"gpt2: error: {server.address}")
        assert reason in err
        assert len(err.splitlines()) == 1
        assert TOKEN not in err
        assert "hf_wrong_token" not in err
    assert server.files == {}


def test_push_without_a_token_says_how_to_get_one(gpt2, exported: Path, tmp_path: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "hf auth login" in gpt2("push", exported, "me/plays")[2]
    assert "MY_TOKEN is empty" in gpt2("push", exported, "me/plays", "--token-from-env", "MY_TOKEN")[2]


def test_push_exports_a_model_that_has_no_card(gpt2, model_directory: Path) -> None:
    before = sorted(file.name for file in model_directory.iterdir())
    code, out, err = gpt2("push", model_directory, "me/plays", "--dry-run", "--json")
    assert code == 0, err
    assert {"README.md", "tokenizer.json"} <= {file["file"] for file in json.loads(out)["files"]}
    assert sorted(file.name for file in model_directory.iterdir()) == before
