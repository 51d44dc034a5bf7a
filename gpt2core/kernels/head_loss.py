"""Head and cross-entropy in one: the logits are stored once, and their gradient overwrites them.

The logits are a step's largest tensor: 16 x 128 tokens times 50,257 words are 0.4 GB in fp32, and a plain cross-entropy
stores three of that size. Shapes: N tokens, C n_embd, V vocab_size, P the same padded.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.kernels.switch import own_kernels_are_faster

ROWS_AT_A_TIME = 16  # in the softmax: few enough for the processor's cache
ROWS_A_MATMUL = 512  # when the scores are not stored
WORDS_AT_A_TIME = 64  # a matmul over 50,257 words takes up to 1.7 times as long as one over 50,304


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.vocab_size, ctx.dtypes = len(weight), (x.dtype, weight.dtype)
        x, weight = x.to(dtype), padded(weight, dtype)  # (P, C)
        grad = x @ weight.t()  # (N, P): the logits at first
        grad[:, ctx.vocab_size :] = -torch.inf
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        rows = zip(grad.split(ROWS_AT_A_TIME), targets[:, None].split(ROWS_AT_A_TIME), strict=True)
        for logits, wanted in rows:
            exact = logits.float()
            softmax = exact.softmax(dim=1)
            loss += _losses(exact, softmax, wanted).sum()
            logits.copy_(softmax.scatter_add_(1, wanted, -torch.ones_like(wanted, dtype=torch.float32)))
        ctx.save_for_backward(grad, x, weight)
        return loss / len(x)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad, x, weight = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        factor = grad_loss / len(x)
        grad_x = (grad @ weight).to(x_dtype).mul_(factor)
        if factor.to(x.dtype) == factor:  # then scaling the smaller matrix is as exact
            return grad_x, (grad.t() @ (x * factor))[: ctx.vocab_size].to(weight_dtype), None, None
        return grad_x, (grad.t() @ x)[: ctx.vocab_size].to(weight_dtype).mul_(factor), None, None


def _losses(logits: Tensor, softmax: Tensor, targets: Tensor) -> Tensor:
    """-log of the softmax (N, P) at targets (N, 1), also where the softmax underflows in fp32."""
    likelihoods = softmax.gather(1, targets)
    if likelihoods.min() > torch.finfo(torch.float32).tiny:
        return -likelihoods.log_()
    # At the largest logit, log softmax = that logit - log(sum of all exponentials).
    log_sum = logits.amax(dim=1, keepdim=True) - softmax.amax(dim=1, keepdim=True).log_()
    return log_sum - logits.gather(1, targets)


def padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` (V, C) in `dtype`, padded with rows of zeros to (P, C)."""
    extra = -len(weight) % WORDS_AT_A_TIME
    if extra == 0:
        return weight.to(dtype)
    longer = torch.empty(len(weight) + extra, weight.shape[1], dtype=dtype, device=weight.device)
    longer[: len(weight)].copy_(weight)
    longer[len(weight) :].zero_()
    return longer


def padded_head_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of x (N, C) under a head `weight` (V, C), for targets (N,) int64, on any device."""
    vocab_size = len(weight)
    logits = padded_logits(x, weight)
    if torch.compiler.is_compiling():  # aligned rows: a slice would be read twice as slowly
        logits = torch.where(torch.arange(logits.shape[1], device=x.device) < vocab_size, logits, -torch.inf)
    else:
        logits = logits[:, :vocab_size]
    return F.cross_entropy(logits.float(), targets)


def padded_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Logits (N, P) of x (N, C) under a head `weight` (V, C); those after the V-th are of no word, and 0.

    An H200 multiplies by 50,257 words at a fifth of the rate that it has with 50,304.
    """
    dtype = _matmul_dtype(x)
    return F.linear(x.to(dtype), F.pad(weight.to(dtype), (0, 0, 0, -len(weight) % WORDS_AT_A_TIME)))


def head_loss_is_faster(x: Tensor) -> bool:
    """For x (N, C) on its device: a GPU compiles its step, and fp16 needs a scaled gradient."""
    return own_kernels_are_faster(x.device) and torch.is_grad_enabled()


def head_scores(x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """Losses (N,) in nats of x (N, C) under a head `weight` (V, C), and how many targets have the highest logit.

    For targets (N,) int64, without gradients; fp32.
    """
    dtype = _matmul_dtype(x)
    losses, hits = [], 0
    with torch.autocast(x.device.type, enabled=False):
        vocab_size, x, weight = len(weight), x.to(dtype), padded(weight, dtype)
        for hidden, goals in zip(x.split(ROWS_A_MATMUL), targets.split(ROWS_A_MATMUL), strict=True):
            scores = hidden @ weight.t()
            scores[:, vocab_size:] = -torch.inf
            rows = zip(scores.split(ROWS_AT_A_TIME), goals[:, None].split(ROWS_AT_A_TIME), strict=True)
            for logits, wanted in rows:
                exact = logits.float()
                losses.append(_losses(exact, exact.softmax(dim=1), wanted).flatten())
                # argmax is slow: it runs only where the target's logit equals the maximum, to settle ties.
                likely = (exact.gather(1, wanted) == exact.amax(dim=1, keepdim=True)).flatten()
                hits += int((exact[likely].argmax(dim=1) == wanted[likely].flatten()).sum())
    return torch.cat(losses), hits


def head_loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of x (N, C) under a head `weight` (V, C), for targets (N,) int64; softmax in fp32."""
    dtype = _matmul_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        loss: Tensor = _HeadLoss.apply(x, weight, targets, dtype)
    return loss


def _matmul_dtype(x: Tensor) -> torch.dtype:
    """The dtype of autocast, else that of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
