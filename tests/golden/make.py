"""Writes the golden files of the format that this code writes: `python -m tests.golden.make tests/golden/v1`.

Token sets of examples have a format of their own: `python -m tests.golden.make --examples tests/golden/examples-v2`.

Run once for a format that is released, by the code of that release, and committed; never again for the same version.
What later code must read of them stands in expected.json, and tests/gpt2core/test_golden.py reads it.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gpt2core.config import GPTConfig
from gpt2core.data import tokens
from gpt2core.data.batches import Batches
from gpt2core.data.examples.reading import Example
from gpt2core.data.examples.template import TEMPLATES, Turn
from gpt2core.data.examples.writer import write_examples
from gpt2core.data.writer import write_tokens
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.storage.files import write_json
from gpt2core.training import checkpoint
from gpt2core.training.trainer import Trainer
from tests.support.training import CONFIG, ArrayTokens

CONFIG_OF_MODEL = GPTConfig(32, 16, n_layer=1, n_head=2, n_embd=8, drop_rate=0.1)
TEXT = ("To be, or not to be, that is the question:", "Naïve café — 日本語 🎭", "O Romeo, Romeo!") * 4
IDS = [[1, 2, 3, 4, 5, 6], [31, 0, 16, 8, 4, 2]]
FINGERPRINT = {"data_sha256": "golden", "seed": 1}
SAVED_STEP, LAST_STEP = 6, 10
RUN_ID = "0123456789abcdef0123456789abcdef"


def trainer(checkpoints: Path) -> Trainer:
    """The same small training each time; its dropout and its batches are functions of the step."""
    torch.manual_seed(1)
    return Trainer(
        GPT(CONFIG_OF_MODEL),
        Batches(ArrayTokens(300, seed=0), batch_size=4, sequence_length=8, sampler="shuffled", seed=1),
        ArrayTokens(60, seed=1),
        replace(CONFIG, max_steps=LAST_STEP, checkpoint_interval=SAVED_STEP, log_interval=1, keep_last=9),
        run=Runtime(torch.device("cpu"), "fp32", "golden"),
        checkpoints=checkpoints,
        fingerprint=FINGERPRINT,
    )


def logits(model: Any) -> list[list[list[float]]]:
    """Of IDS, (2, 6, 32)."""
    with torch.inference_mode():
        values: list[list[list[float]]] = model(torch.tensor(IDS)).tolist()
    return values


def losses(run: Trainer) -> list[float]:
    return [row["train_loss"] for row in run.history]


def make(directory: Path) -> None:
    run = trainer(directory / "checkpoints")
    run.extra["run_id"] = RUN_ID
    run.fit()
    for path in checkpoint.step_directories(run.checkpoints)[1:]:
        shutil.rmtree(path)
    saved = GPT.from_pretrained(run.checkpoints / f"step-{SAVED_STEP:08d}").eval()
    saved.save_pretrained(directory / "model")
    write_registered(saved, directory / "registered")
    fragments = [piece for text in TEXT for piece in (text, "<|endoftext|>")]
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    manifest = write_tokens(directory / "tokens", fragments, source="golden", shares=shares, shard_tokens=40)
    write_json(
        directory / "expected.json",
        {
            "versions": {"checkpoint": checkpoint.FORMAT_VERSION, "tokens": tokens.FORMAT_VERSION},
            "saved_step": SAVED_STEP,
            "losses": losses(run),
            "logits": logits(saved),
            "tokens": {name: tokens.open_split(directory / "tokens", name).read(0, entry["tokens"]).tolist()
                       for name, entry in manifest["splits"].items()},
        },
    )  # fmt: skip


def make_examples(directory: Path) -> None:
    """A token set of conversations, and what it must give back."""
    examples = [
        Example(
            (Turn("system", "Be brief."), Turn("user", text), Turn("assistant", f"Answer {number}: {text[:7]}")),
            "golden.jsonl",
            f"line {number}",
        )
        for number, text in enumerate(TEXT, start=1)
    ]
    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    manifest = write_examples(
        directory / "tokens", examples, TEMPLATES["chat"], source="golden", shares=shares, shard_tokens=100
    )
    opened = {name: tokens.open_split(directory / "tokens", name) for name in manifest["splits"]}
    write_json(
        directory / "expected.json",
        {
            "version": tokens.EXAMPLES_VERSION,
            "template": TEMPLATES["chat"].jinja,
            "tokens": {name: split.read(0, len(split)).tolist() for name, split in opened.items()},
            "answers": {name: split.answers(0, len(split)).tolist() for name, split in opened.items()},
        },
    )


def write_registered(model: GPT, directory: Path) -> None:
    """What MLflow keeps of a version of `gpt2`: an exported graph, as the stage `register` logs it."""
    import mlflow.pytorch

    mlflow.pytorch.save_model(model, str(directory), **export_settings(model.config.vocab_size))


def export_settings(vocab_size: int) -> dict[str, Any]:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return {
        "serialization_format": "pt2",
        "input_example": torch.zeros(2, 8, dtype=torch.int64),
        "signature": ModelSignature(
            Schema([TensorSpec(np.dtype("int64"), (-1, -1))]),
            Schema([TensorSpec(np.dtype("float32"), (-1, -1, vocab_size))]),
        ),
        "pip_requirements": ["torch"],
    }


if __name__ == "__main__":
    if sys.argv[1] == "--examples":
        make_examples(Path(sys.argv[2]))
    else:
        make(Path(sys.argv[1]))
