"""Logits processors for sampling: temperature, top-k, top-p; the same values that `transformers` computes."""

import torch
from torch import Tensor


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    return logits / temperature


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Logits (B, V) with all below the k-th largest at -inf; ties with it are kept."""
    kth = torch.topk(logits, min(top_k, logits.shape[-1])).values[..., -1, None]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Logits (B, V) with all outside the smallest set of probability top_p at -inf (Holtzman et al. 2020)."""
    ordered, order = torch.sort(logits, descending=False)
    dropped = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[..., -1] = False  # the likeliest token always stays
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
