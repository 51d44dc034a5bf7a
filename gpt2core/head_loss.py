"""The head of a language model and its loss in one: the logits are held once, and their gradient takes their place.

The logits are a step's largest tensor: 16 x 128 tokens times 50,257 words are 0.4 GB in fp32, and a plain cross-entropy
keeps three of that size. Shapes: N tokens, C n_embd, V vocab_size.
"""

from typing import Any

import torch
from torch import Tensor

ROWS_AT_A_TIME = 32  # through the softmax: so few that they stay in the processor's cache


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        grad = x @ weight.t()  # (N, V): the logits at first
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        rows = zip(grad.split(ROWS_AT_A_TIME), targets[:, None].split(ROWS_AT_A_TIME), strict=True)
        for logits, wanted in rows:
            exact = logits.float()
            log_sum = exact.logsumexp(dim=1, keepdim=True)
            loss += (log_sum - exact.gather(1, wanted)).sum()
            softmax = (exact - log_sum).exp_()
            logits.copy_(softmax.scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=torch.float32)))
        ctx.save_for_backward(grad, x, weight)
        return loss / len(x)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None]:
        grad, x, weight = ctx.saved_tensors
        factor = (grad_loss / len(x)).to(x.dtype)
        return (grad @ weight) * factor, grad.t() @ (x * factor), None


def head_loss_pays(x: Tensor) -> bool:
    """Whether `head_loss` is the better way for x: a GPU compiles its step, and fp16 needs a scaled gradient."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def head_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of x (N, C) under a head `weight` (V, C), for targets (N,) int64; softmax in fp32."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        loss: Tensor = _HeadLoss.apply(x, weight, targets)
    return loss
