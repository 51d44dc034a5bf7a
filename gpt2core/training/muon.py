"""Muon where torch's own is slow: in fp32 for CPUs without fast bf16, and many matrices at once for GPUs.

Settings and state are torch's, so each kind loads the others' checkpoints. Shapes: M matrices of (R, C).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpt2core.runtime import Runtime

MOST_TOGETHER = 32_000_000  # numbers: the copies of more would be a part of a large model's memory


def muon_for(run: Runtime) -> type[torch.optim.Muon]:
    """The kind that is fast where the run is."""
    if run.device.type == "cuda":
        return BatchedMuon
    return Fp32Muon if run.precision == "fp32" else torch.optim.Muon


class Fp32Muon(torch.optim.Muon):
    """`torch.optim.Muon` with its orthogonalisation in the matrix's own dtype in place of bf16.

    A CPU without AVX-512 multiplies bf16 matrices 50 to 500 times slower than fp32 ones (pytorch/pytorch issue 146508).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update with Nesterov momentum of every matrix that has a gradient."""
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


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` that orthogonalises matrices of one shape together, in bf16.

    A GPU waits for Python while torch's launches 3,500 kernels a step for the 48 matrices of 124M.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update with Nesterov momentum of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for matrices in _alike([matrix for matrix in group["params"] if matrix.grad is not None]):
                self._update(group, matrices)

    def _update(self, group: dict[str, Any], matrices: list[Tensor]) -> None:
        """One update of matrices of one shape."""
        rate, kept, (rows, columns) = float(group["lr"]), group["momentum"], matrices[0].shape
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - kept)
        together = torch.stack(torch._foreach_lerp(gradients, momenta, kept)).bfloat16()  # (M, R, C)
        straight = orthogonalised(together, group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
        added = list(straight.to(matrices[0].dtype).unbind())
        torch._foreach_add_(matrices, added, alpha=-rate * math.sqrt(max(1, rows / columns)))


def _alike(matrices: list[Tensor]) -> Iterator[list[Tensor]]:
    """Matrices of one shape together, of at most MOST_TOGETHER numbers."""
    for shape in dict.fromkeys(matrix.shape for matrix in matrices):
        of_shape = [matrix for matrix in matrices if matrix.shape == shape]
        count = max(1, MOST_TOGETHER // shape.numel())
        for start in range(0, len(of_shape), count):
            yield of_shape[start : start + count]


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The matrix (R, C), or each of (M, R, C), with all singular values near 1, in its own dtype.

    A quintic Newton-Schulz iteration: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    a, b, c = coefficients
    add = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm() if matrix.ndim == 2 else x.norm(dim=(1, 2), keepdim=True)).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
