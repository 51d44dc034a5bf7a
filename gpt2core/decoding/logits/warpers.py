"""What reshapes the distribution before a token is drawn; bit-equal to `transformers` 5.23.

Each is a function of ids (B, T), which it does not look at, and logits (B, V) fp32; what it rules out becomes -inf.
`keep` is the number of likeliest tokens that always stay: beam search needs one besides the ends of text.
Shapes: B rows, T tokens so far, V vocab_size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Temperature:
    temperature: float

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        return logits / self.temperature


@dataclass(frozen=True)
class TopK:
    """The `top_k` likeliest tokens and those that tie with the last of them (Fan et al. 2018)."""

    top_k: int
    keep: int = 1

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        return logits.masked_fill(logits < _kth_largest(logits, max(self.top_k, self.keep)), -torch.inf)


@dataclass(frozen=True)
class TopP:
    """The smallest set of likeliest tokens of probability `top_p` (Holtzman et al. 2020)."""

    top_p: float
    keep: int = 1

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if logits.device.type != "cpu":
            return self._by_order(logits)
        # Values without their places take numpy a thirtieth of the time, and the least one kept tells what to drop.
        ordered = torch.from_numpy(np.sort(logits.detach().numpy(), axis=-1))
        dropped = self._dropped(ordered).sum(-1, keepdim=True)
        least_kept = ordered.gather(1, dropped)
        most_dropped = ordered.gather(1, (dropped - 1).clamp(min=0))
        kept = logits.masked_fill(logits < least_kept, -torch.inf)
        # Where equal logits meet the edge, the sort decides which of them go.
        split = ((dropped > 0) & (most_dropped == least_kept) & (least_kept > -torch.inf))[:, 0]
        if bool(split.any()):
            kept[split] = self._by_order(logits[split])
        return kept

    def _by_order(self, logits: Tensor) -> Tensor:
        ordered, order = torch.sort(logits)
        dropped = self._dropped(ordered)
        return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)

    def _dropped(self, ordered: Tensor) -> Tensor:
        """Which of ascending logits are outside, (B, V) bool."""
        dropped = ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p
        dropped[:, -self.keep :] = False
        return dropped


@dataclass(frozen=True)
class MinP:
    """Tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024)."""

    min_p: float
    keep: int = 1

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        dropped = probabilities < self.min_p * probabilities.amax(-1, keepdim=True)
        if self.keep > 1:
            likeliest = probabilities.topk(min(self.keep, logits.shape[-1])).indices
            dropped.scatter_(1, likeliest, False)
        return logits.masked_fill(dropped, -torch.inf)


@dataclass(frozen=True)
class TypicalP:
    """The tokens of surprise nearest to the entropy that make up probability `typical_p` (Meister et al. 2022)."""

    typical_p: float
    keep: int = 1

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        log_probs = logits.log_softmax(-1)
        entropy = -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)  # 0 log 0 is left out
        distance = (-log_probs - entropy).abs()
        ordered, order = torch.sort(distance)
        mass = logits.gather(1, order).softmax(-1).cumsum(-1)
        last = (mass < self.typical_p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        dropped = distance > ordered.gather(1, last)
        dropped.scatter_(1, order[:, : self.keep], False)
        return logits.masked_fill(dropped, -torch.inf)


@dataclass(frozen=True)
class EpsilonCutoff:
    """Tokens of probability `epsilon` or more (Hewitt et al. 2022)."""

    epsilon: float
    keep: int = 1

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        dropped = (logits.softmax(-1) < self.epsilon) & (logits < _kth_largest(logits, self.keep))
        return logits.masked_fill(dropped, -torch.inf)


@dataclass(frozen=True)
class EtaCutoff:
    """As EpsilonCutoff, with a lower bound where the distribution is flat (Hewitt et al. 2022)."""

    epsilon: float
    keep: int = 1

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        normalised = logits - logits.logsumexp(-1, keepdim=True)
        # A probability of 0 times the lowest number is 0, times -inf no number.
        finite = normalised.clamp(min=torch.finfo(logits.dtype).min)
        entropy = -(finite * normalised.softmax(-1)).sum(-1, keepdim=True)
        epsilon = torch.tensor(self.epsilon)  # rounded to fp32 before the root is taken
        eta = (epsilon.sqrt().item() * (-entropy).exp()).clamp(max=epsilon.item())
        dropped = (logits.softmax(-1) < eta) & (logits < _kth_largest(logits, self.keep))
        return logits.masked_fill(dropped, -torch.inf)


def _kth_largest(logits: Tensor, k: int) -> Tensor:
    """(B, 1)"""
    if k == 1:
        return logits.amax(-1, keepdim=True)
    return logits.topk(min(k, logits.shape[-1])).values[:, -1:]
