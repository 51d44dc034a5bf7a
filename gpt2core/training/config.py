"""The settings of a training run, each with its default, bounds and help; `metadata` holds the latter two.

Defaults are those of new weights that write what they have not read (the recipe `generalise`).
"""

from dataclasses import dataclass, field
from typing import Any, Literal


def setting(default: Any, help: str = "", **bounds: float) -> Any:
    """A field with bounds `gt`, `ge`, `lt`, `le`, which whoever reads settings from a file checks."""
    return field(default=default, metadata={"help": help, "bounds": bounds})


@dataclass(frozen=True, kw_only=True)
class StopSettings:
    target_loss: float | None = setting(4.4, "Nats per token; null: no target.", gt=0, le=100)
    metric: Literal["train_batch", "train_ema", "train_full", "val"] = setting(
        "train_ema",
        "What is compared with the target: one batch, their moving average, a full pass over train, or the val split.",
    )
    patience: int | None = setting(
        None,
        "Evaluations without a new best val_loss (train_loss where there is no val split) before stopping.",
        ge=1,
    )
    max_steps: int | None = setting(1200, ge=1)
    max_epochs: float | None = setting(None, gt=0, le=1_000_000)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    optimizer: Literal["adamw", "muon", "adafactor"] = setting(
        "muon",
        "muon: Muon on the matrices, AdamW on the rest; for scratch runs. adafactor: half of AdamW's memory, for "
        "models that do not fit otherwise; its learning_rate is relative to the weights; about 1e-3 to fine-tune.",
    )
    learning_rate: float = setting(3.0e-3, "Peak of the schedule.", gt=0, le=10)
    min_learning_rate: float = setting(1.5e-4, "Floor of the schedule.", ge=0, le=10)
    muon_learning_rate: float = setting(2.0e-2, "Peak for the matrices under muon.", gt=0, le=10)
    beta1: float = setting(0.9, ge=0, lt=1)
    beta2: float = setting(0.99, ge=0, lt=1)
    schedule: Literal["onecycle", "cosine", "linear", "wsd", "constant"] = setting("cosine")
    warmup_steps: int | None = setting(100, "null: 30 % of the run for onecycle, 2 % for the others.", ge=0)
    decay_fraction: float = setting(0.2, "Share of the run in which wsd decays.", gt=0, le=1)
    weight_decay: float = setting(0.1, "On matrices only.", ge=0, le=10)
    max_grad_norm: float | None = setting(1.0, "Clip the gradient to this norm; null: no clipping.", gt=0)
    micro_batch_size: int | None = setting(
        None, "Sequences per forward pass on one device; null: the step's share.", ge=1, le=1_000_000
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, a quarter slower."
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto", "torch.compile; auto: on a GPU, if the run is long enough to gain time by it."
    )
    cuda_graph: Literal["auto", "on", "off"] = setting(
        "auto",
        "Launch a whole update at once, for GPUs that wait for Python; auto: for steps of at most 65,536 tokens.",
    )
    log_interval: int = setting(10, "Steps between rows of the history, the log file and MLflow.", ge=1)
    eval_batches: int | None = setting(20, "Batches of each split at an evaluation; null: the whole split.", ge=1)
    sample_tokens: int = setting(40, "Length of the sample text at each evaluation; 0: none.", ge=0, le=100_000)
    sample_interval: Literal["evaluation", "epoch"] = setting(
        "evaluation", "A sample at each evaluation, or after each epoch."
    )
    checkpoint_interval: int = setting(250, ge=1)
    keep_last: int = setting(2, "Checkpoints kept in addition to the best weights.", ge=1)
    spike_rollback: float | None = setting(
        None,
        "Standard deviations above the recent losses at which a batch's update is skipped; after three in a row the "
        "run rolls back to its last checkpoint and skips these batches. null: a spike is only reported.",
        ge=3,
    )


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(TrainSettings, StopSettings):
    """Settings of a run of `Trainer`."""

    eval_interval: int | None = None  # steps; None: once an epoch
    best_by: Literal["val_loss", "train_loss"] = "val_loss"
    sample_prompt: tuple[int, ...] = (50256,)  # <|endoftext|>
    seed: int = 42
    own_kernels: bool = True  # this package's CPU kernels for head, attention and dropout; False: torch's
