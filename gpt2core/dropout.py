"""Dropout of which a CPU is not slow: torch draws one random number an element there, one after the other.

Four elements share a random number of 64 bits, so a rate is exact to 1 in 65,536.
"""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16


class Dropout(nn.Module):
    """`nn.Dropout`, with other random numbers on a CPU."""

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_rate == 0.0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.drop_rate)
        dropped: Tensor = _Dropout.apply(x, self.drop_rate)
        return dropped

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate}"


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drop_rate: float) -> Tensor:
        kept = keep_mask(x.shape, drop_rate)
        ctx.save_for_backward(kept)
        ctx.scale = scale_of(drop_rate)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None


def keep_mask(shape: torch.Size, drop_rate: float) -> Tensor:
    """A mask on the CPU, bool, True with probability 1 - drop_rate, drawn from torch's own generator."""
    count = prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    dropped = round(drop_rate * LEVELS)
    return (words.view(torch.int16)[:count] >= dropped - LEVELS // 2).view(shape)


def scale_of(drop_rate: float) -> float:
    """What is kept is multiplied by this, so that the expectation stays."""
    return LEVELS / (LEVELS - round(drop_rate * LEVELS)) if drop_rate < 1.0 else 0.0
