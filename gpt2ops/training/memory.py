"""Whether a training can fit into memory at all: when memory runs out, Linux kills the process without a message."""

from pathlib import Path

import psutil

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
GIB = 2**30


def check_memory(
    config: GPTConfig, *, device: str, micro_tokens: int, optimizer: str = "adamw", memory_bytes: int | None = None
) -> None:
    """Raises UserError if the minimum that training needs exceeds `memory_bytes` (None: this machine's memory).

    `micro_tokens`: tokens of a forward pass. The minimum is weights, gradients and one moment (Muon has no second one,
    Adafactor only small ones) in fp32 and the logits in bf16; for a GPU only the weights use this machine's memory.
    """
    memory = memory_bytes or total_memory_bytes()
    num_parameters = config.num_parameters
    copies = 1 if device != "cpu" else 2 if optimizer == "adafactor" else 3
    weights = 4 * num_parameters * copies
    if weights > memory:
        raise UserError(
            rule=f"the model has {num_parameters:,} parameters and needs at least {weights / GIB:,.1f} GiB, but this "
            f"machine has {memory / GIB:,.1f} GiB of memory",
            remedy=f"lower {{model.n_layer}} ({config.n_layer}) or {{model.n_embd}} ({config.n_embd})",
        )
    logits = 2 * micro_tokens * config.vocab_size
    if device == "cpu" and weights + logits > memory:
        raise UserError(
            rule=f"a forward pass of {micro_tokens:,} tokens needs at least {(weights + logits) / GIB:,.1f} GiB, but "
            f"this machine has {memory / GIB:,.1f} GiB of memory",
            remedy="set {train.micro_batch_size} lower than now (it must divide {train.batch_size})",
        )


def total_memory_bytes() -> int:
    """Of the machine, or of the container where that has a limit."""
    total = psutil.virtual_memory().total
    try:
        return min(total, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return total
