"""Dropout of which a CPU is not slow: torch draws one random number an element there, one after the other.

Four elements share a random number of 64 bits, so a rate is exact to 1 in 65,536. A mask is of the tensor's own dtype:
torch takes seven times as long to multiply bf16 by bool.
"""

from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2core.kernels.switch import own_kernels_are_faster

LEVELS = 1 << 16


class Dropout(nn.Module):
    """`nn.Dropout`, with other random numbers on a CPU."""

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate, self.own_kernels = drop_rate, True

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_rate == 0.0:
            return x
        if not (self.own_kernels and own_kernels_are_faster(x.device)):
            return F.dropout(x, self.drop_rate)
        dropped: Tensor = _Dropout.apply(x, self.drop_rate)
        return dropped

    def extra_repr(self) -> str:
        return f"drop_rate={self.drop_rate}"


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drop_rate: float) -> Tensor:
        kept = keep_mask(x.shape, drop_rate, x.dtype)
        ctx.save_for_backward(kept)
        ctx.scale = scale_of(drop_rate)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (grad * kept).mul_(ctx.scale), None


def keep_mask(shape: torch.Size, drop_rate: float, dtype: torch.dtype) -> Tensor:
    """A mask on the CPU, 1 with probability 1 - drop_rate and 0 else, a function of torch's own generator."""
    count = prod(shape)
    # SFC64, twice as fast as torch's Mersenne twister, begins with a number of the generator that a run seeds.
    words = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw((count + 3) // 4)
    draws = torch.from_numpy(words.view(np.int16))[:count]
    kept = torch.empty(count, dtype=dtype)
    torch.ge(draws, round(drop_rate * LEVELS) - LEVELS // 2, out=kept)
    return kept.view(shape)


def scale_of(drop_rate: float) -> float:
    """What is kept is multiplied by this, so that the expectation stays."""
    return LEVELS / (LEVELS - round(drop_rate * LEVELS)) if drop_rate < 1.0 else 0.0
