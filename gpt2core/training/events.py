"""What the training loop reports to its listeners, and the result of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpt2core.training.config import TrainerConfig

Row = dict[str, float | int | None]
# Every row of the history has every key, None where it was not measured: DVC plots only rows of the same keys.
ROW_KEYS = (
    "step",
    "tokens_seen",
    "epoch",
    "train_loss",
    "train_eval_loss",
    "val_loss",
    "val_perplexity",
    "val_token_accuracy",
    "val_loss_stderr",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
)


class TrainerView(Protocol):
    """What a listener may read of a trainer."""

    config: TrainerConfig
    step: int
    saved_step: int | None  # of the newest checkpoint; None at the start of a run that does not resume
    total_steps: int
    batch_size: int
    sequence_length: int
    tokens_per_step: int
    batches_per_epoch: int  # rounded: an epoch may end within a batch
    history: list[Row]

    @property
    def learning_rate(self) -> float:
        """Of the last update."""

    @property
    def smoothed_loss(self) -> float | None:
        """Moving average of the batch losses in nats per token; None before the first."""


class TrainerEvents:
    """A listener; each method does nothing unless overridden."""

    def on_start(self, trainer: TrainerView) -> None: ...

    def on_step(self, trainer: TrainerView, train_loss: float) -> None: ...

    def on_row(self, row: Row) -> None: ...

    def on_evaluation(self, row: Row) -> None: ...

    def on_sample(self, step: int, token_ids: list[int]) -> None: ...

    def on_best(self, step: int, name: str, value: float, directory: Path) -> None: ...

    def before_checkpoint(self, step: int) -> None: ...

    def on_checkpoint(self, step: int, directory: Path) -> None: ...

    def on_note(self, message: str) -> None: ...


class IntervalMeter:
    """Mean batch loss and speed since the last row of the history."""

    def __init__(self, tokens_per_step: int) -> None:
        self.losses: list[float] = []
        self._tokens_per_step, self._started_at = tokens_per_step, time.perf_counter()

    def start(self) -> None:
        self._started_at = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The body's time, an evaluation's, does not count as training."""
        paused_at = time.perf_counter()
        yield
        self._started_at += time.perf_counter() - paused_at

    def read(self) -> Row:
        """`train_loss` and `tokens_per_second`; begins the next interval."""
        losses, seconds = self.losses, max(1e-9, time.perf_counter() - self._started_at)
        self.losses = []
        self.start()
        return {
            "train_loss": sum(losses) / len(losses) if losses else None,
            "tokens_per_second": len(losses) * self._tokens_per_step / seconds,
        }


@dataclass(frozen=True)
class TrainResult:
    """How a run ended; losses in nats per token.

    `train_loss_full` is a full pass over train without dropout with the last weights, None where no target was
    reached. `batch_target_step` is the first step whose batch was at or under the target, `batch_target_loss_full`
    the full pass at that step: one lucky batch is not a result. `best_step` is the step of the kept model.
    """

    steps: int
    tokens_seen: int
    epochs: float
    train_loss: float | None
    best_train_loss: float | None
    train_loss_full: float | None
    batch_target_step: int | None
    batch_target_loss_full: float | None
    val_loss: float | None
    best_val_loss: float | None
    best_step: int | None
    target_reached: bool | None
    stop_reason: str
    tokens_per_second: float
    wall_seconds: float
