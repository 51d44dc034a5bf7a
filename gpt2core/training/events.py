"""What the training loop tells its listeners, and how a run ends."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2core.training.trainer import Trainer

Row = dict[str, float | int | None]
# Every row of the history has every key, None where it was not measured: DVC plots only rows of one shape.
ROW_KEYS = (
    "step",
    "tokens_seen",
    "epoch",
    "train_loss",
    "train_eval_loss",
    "val_loss",
    "val_perplexity",
    "val_token_accuracy",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
)


class TrainerEvents:
    """What a listener may hear; each method does nothing unless overridden."""

    def on_start(self, trainer: "Trainer") -> None: ...

    def on_step(self, trainer: "Trainer", train_loss: float) -> None: ...

    def on_row(self, row: Row) -> None: ...

    def on_evaluation(self, row: Row) -> None: ...

    def on_sample(self, step: int, token_ids: list[int]) -> None: ...

    def on_best(self, step: int, name: str, value: float, directory: Path) -> None: ...

    def before_checkpoint(self, step: int) -> None: ...

    def on_checkpoint(self, step: int, directory: Path) -> None: ...

    def on_note(self, message: str) -> None: ...


@dataclass(frozen=True)
class TrainResult:
    """How a run ended; losses in nats a token.

    `train_loss_full` is a full pass over train without dropout with the last weights, None where no target was
    reached. `batch_target_step` is the first step whose batch was at or under the target, `batch_target_loss_full`
    what a full pass gave then: one lucky batch is not a result. `best_step` is the one whose model was kept.
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
