"""Checks that an exported model gives the same results in transformers and in CTranslate2, a C++ runtime."""

import importlib.metadata
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2core.decoding import generate
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer

PROMPTS = ("The", "Once upon a time there was", "In the year 1851 — “naïve” 東京 ROMEO.")
NEW_TOKENS = 24
# Logits of two runtimes differ by rounding; a wrong weight gives a far larger difference.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Check:
    """A runtime, and which of its results are equal."""

    runtime: str
    result: str


@dataclass(frozen=True)
class Expected:
    """The results of this project with the exported weights: greedy tokens after each prompt, and all logits."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    logits: list[torch.Tensor]  # (T, V) each


def check_export(directory: Path) -> list[Check]:
    """Raises UserError if a runtime does not load the directory, or gives other results than this project."""
    model = GPT.from_pretrained(directory)
    expected = _expected(model)
    return [_in_transformers(directory, expected), _in_ctranslate2(directory, expected)]


def _expected(model: GPT) -> Expected:
    tokenizer, block_size = Tokenizer(), model.config.block_size
    count = max(1, min(NEW_TOKENS, block_size // 2))
    prompts = [tokenizer.encode(prompt)[: max(1, block_size - count)] for prompt in PROMPTS]
    tokens = [
        generate(model, [prompt], max_new_tokens=count, eos_token_id=None)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    with torch.inference_mode():
        logits = [model(torch.tensor([[*p, *t][:block_size]]))[0] for p, t in zip(prompts, tokens, strict=True)]
    return Expected(prompts, tokens, logits)


def _in_transformers(directory: Path, expected: Expected) -> Check:
    name = f"transformers {importlib.metadata.version('transformers')}"
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # of many types
        raise _export_error(name, f"it does not load ({_line(error)})") from None
    worst = 0.0
    for text, prompt, tokens, logits in zip(PROMPTS, expected.prompts, expected.tokens, expected.logits, strict=True):
        if tokenizer(text)["input_ids"][: len(prompt)] != prompt:
            raise _export_error(name, f"its tokenizer gives other tokens for {text!r}")
        with torch.inference_mode():
            theirs = model(torch.tensor([[*prompt, *tokens][: len(logits)]])).logits[0].float()
            output = model.generate(
                torch.tensor([prompt]), max_new_tokens=len(tokens), do_sample=False, eos_token_id=None, pad_token_id=0
            )
        worst = max(worst, float((theirs - logits).abs().max()))
        _compare_tokens(name, output[0, len(prompt) :].tolist(), prompt, tokens, logits)
    if not worst <= TOLERANCE:
        raise _export_error(name, f"its logits differ by {worst:.2g}")
    return Check(name, f"same token ids, logits within {worst:.1g}, {_tokens_text(expected)}")


def _in_ctranslate2(directory: Path, expected: Expected) -> Check:
    name = f"CTranslate2 {importlib.metadata.version('ctranslate2')}"
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    spelled = {number: token for token, number in Tokenizer().vocabulary().items()}
    with tempfile.TemporaryDirectory(prefix="gpt2-export-") as folder:
        try:
            TransformersConverter(str(directory)).convert(f"{folder}/model")
            runtime = ctranslate2.Generator(f"{folder}/model", device="cpu", compute_type="float32", intra_threads=1)
        except Exception as error:  # of many types
            raise _export_error(name, f"it does not load ({_line(error)})") from None
        for prompt, tokens, logits in zip(expected.prompts, expected.tokens, expected.logits, strict=True):
            (result,) = runtime.generate_batch(
                [[spelled[number] for number in prompt]],
                max_length=len(tokens),
                min_length=len(tokens),
                sampling_topk=1,
                include_prompt_in_result=False,
            )
            _compare_tokens(name, list(result.sequences_ids[0]), prompt, tokens, logits)
    return Check(name, _tokens_text(expected))


def _compare_tokens(name: str, theirs: list[int], prompt: list[int], ours: list[int], logits: torch.Tensor) -> None:
    """Raises UserError if greedy tokens differ, unless the two tokens' logits are equal within TOLERANCE."""
    for place, (their, our) in enumerate(zip(theirs, ours, strict=False)):
        if their == our:
            continue
        row = logits[len(prompt) + place - 1]
        if float(row[our] - row[their]) <= TOLERANCE or our == Tokenizer.eot_id:
            return  # after a tie, or an end of text that the runtime suppresses, the texts differ
        raise _export_error(name, f"its greedy token {place + 1} after {len(prompt)} tokens is {their}, not {our}")


def _tokens_text(expected: Expected) -> str:
    return f"{sum(map(len, expected.tokens))} greedy tokens after {len(expected.prompts)} prompts equal"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _export_error(name: str, why: str) -> UserError:
    return UserError(f"nothing was exported: checked in {name}, {why}.")
