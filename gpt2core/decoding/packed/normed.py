"""A layer norm and the linear layer after it.

Shapes: M vectors, C n_embd, N outputs.
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.decoding.packed.linear import IntegerLinear, Linear


class Norm(NamedTuple):
    """Layer norm of vectors (M, C) fp32."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class NormedLinear(Protocol):
    """y = norm(x) W^T + b for x (M, C) fp32."""

    def __call__(self, x: Tensor) -> Tensor:
        """(M, N) fp32."""

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """GELU of y, (M, N) fp32 or bf16; `approximate` as torch's GELU has it."""


class LinearAfterNorm:
    """One after the other."""

    def __init__(self, norm: Norm, linear: Linear) -> None:
        self.norm, self.linear = norm, linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        return self.linear.gelu(self.norm(x), approximate)


class IntegerAfterNorm:
    """The norm gives the integers at once, in steps as long for every vector: a normed vector has a bound.

    C numbers of mean 0 and variance 1 are at most sqrt(C - 1) large. Steps are some times longer than those of
    `IntegerLinear` and still finer than bf16's of a common input; finding the largest input is saved.
    """

    def __init__(self, norm: Norm, linear: IntegerLinear) -> None:
        most = (norm.weight.abs() * (len(norm.weight) - 1) ** 0.5 + norm.bias.abs()).amax().clamp_min(1e-12)
        per_unit = linear.MOST / most
        self._norm = Norm(norm.weight * per_unit, norm.bias * per_unit + linear.MIDDLE, norm.eps)
        self._linear, self._scale = linear, linear.scale * most
        self._bias = linear.bias / 257  # it comes once with the low bytes and 256 times with the high ones
        self._256 = torch.tensor(256.0)

    def __call__(self, x: Tensor) -> Tensor:
        steps = self._norm(x)
        # A vector that is not finite is NaN all over once normed, which no integer can tell.
        times = torch.add(self._256, steps[:, :1], alpha=0)  # (M, 1)
        low, high = self._linear.bytes_product(steps, self._scale, self._bias)
        return low.addcmul_(high, times)

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        return F.gelu(self(x), approximate=approximate)


def after_norm(norm: Norm, linear: Linear) -> NormedLinear:
    """The fastest way here from a vector to its normed product."""
    return IntegerAfterNorm(norm, linear) if isinstance(linear, IntegerLinear) else LinearAfterNorm(norm, linear)
