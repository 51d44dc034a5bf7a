"""Causal attention for training on a CPU by two batched matmuls, faster than blocks up to a few hundred tokens.

torch's fused CPU kernel has no dropout; with dropout torch falls back to a version that copies every score and mask
several times.
Shapes: B batch, H n_head, T tokens, D head_dim.
"""

from typing import Any

import torch
from torch import Tensor

from gpt2core.kernels.dropout import keep_mask, scale_of
from gpt2core.kernels.switch import own_kernels_are_faster

# Without dropout torch's kernel, which never stores the scores, is as fast beyond this length.
LONGEST_WITHOUT_DROPOUT = 256


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, drop_rate: float) -> Tensor:
        B, H, T, D = q.shape
        ctx.shape, ctx.drop_scale = q.shape, scale_of(drop_rate)
        q, k, v = (tensor.reshape(B * H, T, D) for tensor in (q * D**-0.5, k, v))
        exact = q.dtype if q.dtype.itemsize >= 4 else torch.float32
        future = torch.full((T, T), -torch.inf, dtype=exact).triu_(1)
        if q.dtype == exact:
            scores = torch.baddbmm(future, q, k.transpose(1, 2))  # (B * H, T, T)
        else:
            scores = torch.bmm(q, k.transpose(1, 2)).float().add_(future)
        weights = scores.softmax(dim=-1).to(q.dtype)
        kept = keep_mask(weights.shape, drop_rate, weights.dtype) if drop_rate else None
        ctx.save_for_backward(q, k, v, weights, kept)
        if kept is None:
            return torch.bmm(weights, v).view(B, H, T, D)
        return torch.bmm(weights * kept, v).mul_(ctx.drop_scale).view(B, H, T, D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, weights, kept = ctx.saved_tensors
        B, H, T, D = ctx.shape
        grad = grad.reshape(B * H, T, D)
        used = weights
        if kept is not None:
            grad, used = grad * ctx.drop_scale, weights * kept
        grad_v = torch.bmm(used.transpose(1, 2), grad)
        grad_weights = torch.bmm(grad, v.transpose(1, 2))
        if kept is not None:
            grad_weights.mul_(kept)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_q = torch.bmm(grad_scores, k).mul_(D**-0.5)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), q)
        return grad_q.view(B, H, T, D), grad_k.view(B, H, T, D), grad_v.view(B, H, T, D), None


def short_attention_is_faster(q: Tensor, drop_rate: float) -> bool:
    """For q (B, H, T, D)."""
    here = own_kernels_are_faster(q.device) and torch.is_grad_enabled()
    return here and (drop_rate > 0.0 or q.shape[2] <= LONGEST_WITHOUT_DROPOUT)


def short_attention(q: Tensor, k: Tensor, v: Tensor, drop_rate: float) -> Tensor:
    """Causal attention of q, k, v (B, H, T, D), all of one dtype; the softmax is in fp32."""
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _ShortAttention.apply(q, k, v, drop_rate)
    return y
