"""Fast dropout on a CPU, where torch draws one random number per element sequentially.

Four elements share a random number of 64 bits, so a rate is exact to 1 in 65,536. The mask has the tensor's dtype:
multiplying bf16 by bool takes seven times as long.
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
    """`nn.Dropout` with another random generator on a CPU."""

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
    """A CPU mask, 1 with probability 1 - drop_rate, else 0; seeded from torch's default generator."""
    count = prod(shape)
    # SFC64 is twice as fast as torch's Mersenne Twister, which the run has seeded and which gives its seed here.
    words = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw((count + 3) // 4)
    draws = torch.from_numpy(words.view(np.int16))[:count]
    kept = torch.empty(count, dtype=dtype)
    torch.ge(draws, round(drop_rate * LEVELS) - LEVELS // 2, out=kept)
    return kept.view(shape)


def scale_of(drop_rate: float) -> float:
    """Factor for the kept elements, so that the expectation is unchanged."""
    return LEVELS / (LEVELS - round(drop_rate * LEVELS)) if drop_rate < 1.0 else 0.0
