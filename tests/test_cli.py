"""The gpt2 command as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    GPT(GPTConfig(50257, 32, n_layer=1, n_head=2, n_embd=16)).save_pretrained(directory)
    Tokenizer().save(directory)
    return directory


def gpt2(*arguments: str) -> "subprocess.CompletedProcess[str]":
    code = "from cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, encoding="utf-8")


def test_generate_continues_the_prompt_and_a_seed_repeats_it(model_directory: Path) -> None:
    arguments = [
        "generate",
        "--model",
        str(model_directory),
        "--prompt",
        "To be",
        "--max-new-tokens",
        "8",
        "--seed",
        "3",
    ]
    first, second = gpt2(*arguments), gpt2(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("To be")
    assert first.stdout == second.stdout
    several = gpt2(*arguments, "--num-sequences", "2").stdout
    assert several.startswith("--- 1 ---\nTo be")
    assert "--- 2 ---\nTo be" in several


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/folder"], "('no/such/folder'): no such folder"),
        (["--model", "gpt2"], "hf download openai-community/gpt2"),
        (["--max-new-tokens", "500"], "at most"),
        (["--temperature", "0"], "temperature (0)"),
        (["--top-p", "1.5"], "top_p (1.5)"),
    ],
)
def test_a_mistake_is_one_line_and_a_failing_exit(model_directory: Path, arguments: list[str], message: str) -> None:
    model = [] if "--model" in arguments else ["--model", str(model_directory)]
    result = gpt2("generate", *model, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
