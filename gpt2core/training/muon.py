"""Muon with its orthogonalisation in fp32, for devices whose bf16 matmuls do not pay."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Fp32Muon(torch.optim.Muon):
    """`torch.optim.Muon`, which always orthogonalises in bf16, without that.

    A CPU without AVX-512 multiplies bf16 matrices 50 to 500 times slower than fp32 ones (pytorch/pytorch issue 146508).
    Settings and state are torch's, so that a checkpoint of the one is a checkpoint of the other.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update, with Nesterov's momentum, of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            rate, kept = float(group["lr"]), group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                if "momentum_buffer" not in self.state[matrix]:
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = self.state[matrix]["momentum_buffer"]
                momentum.lerp_(matrix.grad, 1 - kept)
                update = orthogonalised(
                    matrix.grad.lerp(momentum, kept), group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                rows, columns = matrix.shape
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(update, alpha=-rate * math.sqrt(max(1, rows / columns)))


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The matrix (R, C) with all singular values near 1, in its own dtype: a quintic Newton-Schulz iteration.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
