"""Linear layers of 4-bit weights: too coarse for a text of their own, but read in half the time of int8 ones.

PyTorch's operators for them are those of its weight-only quantisation (pytorch/ao, int4 for a CPU).

Shapes: M vectors, K inputs, N outputs, G groups of a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.decoding.packed.linear import QuantisedLinear

# Weights that share a scale and a zero point; the smallest that the operator takes, and the most exact.
GROUP = 32
# The operator wants a multiple of it in outputs.
_OUTPUTS = 32
# Rows quantised at once: what is made of them in between is small and stays in the cache.
_AT_ONCE = 1024


def has_int4(*inputs: int) -> bool:
    """Whether this machine multiplies 4-bit weights of rows of `inputs` fast."""
    names = ("_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu")
    known = all(hasattr(torch.ops.aten, name) for name in names)
    fast = torch.backends.cpu.get_cpu_capability() == "AVX512"  # with AVX2 they take as long as int8
    return known and fast and all(width % GROUP == 0 for width in inputs)


def quantise_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) int32 in 0..15, and scale and zero point (G, N, 2) bf16: weight is about (int - 8) * scale + zero point.

    Both are rounded first, so that their rounding is no error of its own.
    """
    groups = weight.float().unflatten(1, (-1, GROUP))  # (N, G, GROUP)
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)  # (N, G)
    scale = ((high - low) / 15).clamp_min(1e-9).to(torch.bfloat16)
    zero = (low + 8 * scale.float()).to(torch.bfloat16)
    per_step = scale.float().reciprocal()
    steps = torch.addcmul((8 - zero.float() * per_step)[..., None], groups, per_step[..., None]).round_().clamp_(0, 15)
    return steps.flatten(1).to(torch.int32), torch.stack([scale, zero], dim=-1).transpose(0, 1).contiguous()


class Int4Linear(QuantisedLinear):
    """4-bit weights with a scale and a zero point a group.

    With `less` (K,) the weight is that less than the one given, row by row.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, less: Tensor | None = None) -> None:
        super().__init__(len(weight), bias)
        self._outputs = len(weight)
        weights, all_scales = [], []
        for rows in weight.split(_AT_ONCE):
            steps, scales = quantise_groups(_padded(rows if less is None else rows - less))
            weights.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 2))
            all_scales.append(scales)
        self._weight, self._scales = torch.cat(weights), torch.cat(all_scales, dim=1)

    def multiply(self, x: Tensor) -> Tensor:
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), self._weight, GROUP, self._scales)
        return y if y.shape[1] == self._outputs else y[:, : self._outputs]


def _padded(weight: Tensor) -> Tensor:
    missing = -len(weight) % _OUTPUTS
    return F.pad(weight, (0, 0, 0, missing)) if missing else weight
