"""What a training run does; values come from section `train` of params.yaml, which has the defaults and bounds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of a run; names, meaning and bounds are those of section `train` in params.yaml."""

    optimizer: str
    learning_rate: float
    min_learning_rate: float
    muon_learning_rate: float
    beta1: float
    beta2: float
    schedule: str
    warmup_steps: int | None
    decay_fraction: float
    weight_decay: float
    max_grad_norm: float | None
    micro_batch_size: int | None
    gradient_checkpointing: bool
    compile: str  # auto | on | off
    cuda_graph: str  # auto | on | off
    log_interval: int
    eval_interval: int | None  # None: once an epoch
    eval_batches: int | None
    checkpoint_interval: int
    keep_last: int
    target_loss: float | None
    metric: str
    patience: int | None
    max_steps: int | None
    max_epochs: float | None
    best_by: str  # val_loss | train_loss
    sample_prompt: tuple[int, ...]
    sample_tokens: int
    sample_interval: str  # evaluation | epoch
    seed: int
    spike_rollback: float | None = None  # z-score
    own_kernels: bool = True  # this package's CPU kernels for head, attention and dropout; False: torch's
