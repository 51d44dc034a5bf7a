"""A training of a second: a model with two layers of width 16, tokens that can be learned, and what it told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gpt2core.config import GPTConfig
from gpt2core.data.batches import Batches
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.training.config import TrainerConfig
from gpt2core.training.events import TrainerEvents, TrainResult
from gpt2core.training.trainer import Trainer

CPU = torch.device("cpu")
CONFIG = TrainerConfig(
    optimizer="adamw",
    learning_rate=3e-3,
    min_learning_rate=1e-4,
    muon_learning_rate=0.02,
    beta1=0.9,
    beta2=0.99,
    schedule="cosine",
    warmup_steps=2,
    decay_fraction=0.2,
    weight_decay=0.1,
    max_grad_norm=1.0,
    micro_batch_size=None,
    gradient_checkpointing=False,
    compile="off",
    cuda_graph="auto",
    log_interval=3,
    eval_interval=5,
    eval_batches=2,
    checkpoint_interval=4,
    keep_last=2,
    target_loss=None,
    metric="train_ema",
    patience=None,
    max_steps=20,
    max_epochs=None,
    best_by="val_loss",
    sample_prompt=(1,),
    sample_tokens=3,
    sample_interval="evaluation",
    seed=1,
)


class ArrayTokens:
    """Numbers that count up with noise: learnable, not trivial."""

    def __init__(self, count: int, seed: int) -> None:
        noise = np.random.default_rng(seed).integers(0, 3, count)
        self.values = ((np.arange(count) + noise) % 23).astype(np.uint16)
        self.name = "train"

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


class Heard(TrainerEvents):
    def __init__(self) -> None:
        self.rows, self.notes, self.best, self.samples, self.losses = [], [], [], [], []

    def on_step(self, trainer, train_loss) -> None:
        self.losses.append(train_loss)

    def on_row(self, row) -> None:
        self.rows.append(row)

    def on_note(self, message) -> None:
        self.notes.append(message)

    def on_best(self, step, name, value, directory) -> None:
        self.best.append((step, name, value))

    def on_sample(self, step, token_ids) -> None:
        self.samples.append((step, token_ids))


def make_trainer(
    directory: Path,
    config: TrainerConfig = CONFIG,
    *,
    drop_rate=0.1,
    precision="fp32",
    background_saves=None,
    **changes,
) -> Trainer:
    torch.manual_seed(0)
    model = GPT(GPTConfig(23, 16, n_layer=2, n_head=2, n_embd=16, drop_rate=drop_rate))
    config = replace(config, **changes)
    batches = Batches(ArrayTokens(1000, 0), batch_size=4, sequence_length=8, sampler="shuffled", seed=1)
    fingerprint = {"learning_rate": config.learning_rate}
    run = Runtime(CPU, precision, "for the test")
    return Trainer(
        model, batches, ArrayTokens(300, 1), config, run=run, checkpoints=directory, fingerprint=fingerprint,
        background_saves=background_saves,
    )  # fmt: skip


def hear(trainer: Trainer, heard: Heard) -> Heard:
    trainer.listeners = (heard,)
    return heard


def fit(trainer: Trainer) -> tuple[TrainResult, Heard]:
    heard = Heard()
    trainer.listeners = (heard,)
    return trainer.fit(), heard


def without_speed(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in history]


def assert_same_bits(one: Trainer, other: Trainer) -> None:
    for (name, parameter), same in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(parameter, same), name
    assert without_speed(one.history) == without_speed(other.history)
    assert one.rules.state == other.rules.state
