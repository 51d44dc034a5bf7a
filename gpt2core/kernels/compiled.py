"""The parts of a training step that `torch.compile` compiles: a block, once for all blocks, and the head's loss.

Compiling by part takes seconds where the whole model takes a minute, for about the same step (pytorch/torchtitan
compiles each block so). Shapes: B batch, T tokens, C n_embd, N tokens of all rows, V vocab_size.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from gpt2core.kernels.head_loss import padded_head_loss


@cache
def compiled_block() -> Callable[..., Tensor]:
    """(block, x (B, T, C), mask, cache) -> (B, T, C), without a cache."""
    return torch.compile(_call, dynamic=False)


@cache
def compiled_head_loss() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`padded_head_loss`, compiled."""
    return torch.compile(padded_head_loss, dynamic=False)


def _call(block: nn.Module, x: Tensor, mask: Tensor | None, cache: None = None) -> Tensor:
    y: Tensor = block(x, mask, cache)
    return y
