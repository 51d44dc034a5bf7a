"""Linear layers of frozen weights, laid out for reading them fast on a CPU.

A decoding step multiplies every weight with a few vectors, so its time is that of reading the weights. oneDNN reads its
own blocked layout at memory speed, where the row-major layout of `F.linear` reaches a third of it; PyTorch's inductor
uses the same operators (pytorch/pytorch torch/_inductor/mkldnn_lowerings.py).

Shapes: M vectors, K inputs, N outputs.
"""

import platform
from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Literal["fp32", "bf16", "int8"]

# The layout depends on a number of vectors given at packing; that of 16 is the best one for all from 1 to 256.
_VECTORS = 16
# From so many vectors on, int8 weights are turned into bf16 first: once for all is then cheaper than for each.
_INT8_MAX_VECTORS = 96


class Linear(Protocol):
    """y = x W^T + b for x (M, K) fp32 or bf16."""

    def __call__(self, x: Tensor) -> Tensor:
        """(M, N) fp32."""

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """GELU of y, (M, N) fp32 or bf16; `approximate` as torch's GELU has it."""

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual (M, N) fp32 + y; may write into `residual`."""


def _has_x86_onednn() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()


def has_onednn(weights: Weights) -> bool:
    """Whether this machine and build of PyTorch have oneDNN's packed linear layer, and compute in that type."""
    if not _has_x86_onednn():
        return False
    operators = torch.ops.mkldnn
    if not (hasattr(operators, "_linear_pointwise") and hasattr(operators, "_reorder_linear_weight")):
        return False
    return weights == "fp32" or bool(operators._is_mkldnn_bf16_supported())


def packed_linear(weight: Tensor, bias: Tensor | None, weights: Weights) -> Linear:
    """The fastest layer here for weight (N, K) fp32 or bf16 and bias (N,)."""
    if weights == "int8":
        return int8_linear(*quantise_rows(weight), bias)
    if has_onednn(weights):
        return OneDNNLinear(weight, bias) if weights == "fp32" else OneDNNLinearBF16(weight, bias)
    return PlainLinear(weight, bias, torch.float32 if weights == "fp32" else torch.bfloat16)


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) int8 and the scale (N,) bf16 of each row, symmetric: weight is about int8 * scale.

    The scale is rounded first, so that its rounding is no error of its own.
    """
    weight = weight.float()
    scale = (weight.abs().amax(dim=1).clamp_min(1e-12) / 127).to(torch.bfloat16)
    return (weight / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


class PlainLinear:
    """The fallback: correct everywhere, no faster than `F.linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self._weight, self._bias, self._dtype = weight.to(dtype), None if bias is None else bias.to(dtype), dtype

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self._dtype), self._weight, self._bias).float()

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        return F.gelu(self(x), approximate=approximate)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual + self(x)


class OneDNNLinear:
    """fp32 weights in oneDNN's layout, with GELU and the residual sum inside the multiplication."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.float().contiguous(), _VECTORS)
        self._bias = None if bias is None else bias.float()
        self._linear = torch.ops.mkldnn._linear_pointwise.default
        self._binary = torch.ops.mkldnn._linear_pointwise.binary

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """The weight (N, K) fp32 as it was given, and the bias."""
        return self._weight.to_dense(), self._bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x, self._weight, self._bias, "none", [], "")

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        return self._linear(x, self._weight, self._bias, "gelu", [], approximate)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return self._binary(x, residual, self._weight, self._bias, "add")


class OneDNNLinearBF16:
    """bf16 weights in oneDNN's layout; the residual sum stays fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.to(torch.bfloat16).contiguous(), _VECTORS)
        self._bias = None if bias is None else bias.to(torch.bfloat16)
        self._linear = torch.ops.mkldnn._linear_pointwise.default

    def plain(self) -> tuple[Tensor, Tensor | None]:
        """The weight (N, K) bf16, and the bias."""
        return self._weight.to_dense(), self._bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x.to(torch.bfloat16), self._weight, self._bias, "none", [], "").float()

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        return self._linear(x.to(torch.bfloat16), self._weight, self._bias, "gelu", [], approximate)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual.add_(self._linear(x.to(torch.bfloat16), self._weight, self._bias, "none", [], ""))


class QuantisedLinear(ABC):
    """Weights of few bits; inputs in bf16, sums and bias in fp32."""

    def __init__(self, outputs: int, bias: Tensor | None) -> None:
        self._bias = torch.zeros(outputs) if bias is None else bias.float()

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """x W^T (M, N) bf16."""

    def __call__(self, x: Tensor) -> Tensor:
        return self._bias + self.multiply(x)

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        return F.gelu(self(x), approximate=approximate)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual.add_(self.multiply(x)).add_(self._bias)


class Int8Linear(QuantisedLinear):
    """int8 weights with a scale a row, by an operator that turns each into fp32."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__(len(weight), bias)
        self._weight, self._scale = weight, scale

    def multiply(self, x: Tensor) -> Tensor:
        x = x.to(torch.bfloat16)
        if len(x) <= _INT8_MAX_VECTORS:
            return torch._weight_int8pack_mm(x, self._weight, self._scale)
        return F.linear(x, self._weight.to(torch.bfloat16)) * self._scale


class IntegerLinear:
    """int8 weights with a scale a row, times inputs of 16 bits with a scale a vector, summed as integers.

    The two bytes of the inputs are two rows of one int8 product, for which the weights are read once. Sums of integers
    are exact, so that a vector's result does not depend on those beside it.
    """

    # Around the middle an input is this many steps long at most: both its bytes are within 0..255, 128 standing for 0.
    MOST, ZERO = 32_512, 128
    MIDDLE = ZERO * 256 + ZERO + 0.5
    # Vectors multiplied at once: a head's logits of a long text are large, and these three times as large.
    _AT_ONCE = 128

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        self.bias = torch.zeros(len(weight)) if bias is None else bias.float()
        self.scale, self._zeros = scale.float() / self.MOST, torch.zeros(len(weight), dtype=torch.int64)
        self._weight = torch.ops.onednn.qlinear_prepack(weight, [_VECTORS, weight.shape[1]])
        self._multiply = torch.ops.onednn.qlinear_pointwise.default
        self._middle = torch.full(weight.shape[1:], self.MIDDLE)  # a row: one number for all is added more slowly

    def bytes_product(self, steps: Tensor, scale: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of inputs (M, K) in steps around MIDDLE, what their low and their high bytes give, each (M, N) fp32."""
        M, K = steps.shape
        low_and_high = steps.to(torch.int32).view(torch.uint8).as_strided((2, M, K), (1, 4 * K, 4)).reshape(2 * M, K)
        y = self._multiply(
            low_and_high, 1.0, self.ZERO, self._weight, scale, self._zeros,
            bias, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        low, high = y.view(2, M, -1).unbind()
        return low, high

    def _product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x W^T as a factor (M, N) and a factor (M, 1).

        Few operators, as each costs what reading 50 kB does, and in place: new memory for a head's logits costs more.
        """
        largest = x.abs().amax(1, keepdim=True)
        # Where all is 0 the quotient is no number and neither are its bytes, which are then multiplied by 0.
        steps = torch.addcdiv(self._middle, x, largest, value=self.MOST)
        low, high = self.bytes_product(steps, self.scale, None)
        return low.add_(high, alpha=256), largest

    def __call__(self, x: Tensor) -> Tensor:
        x = x.float().contiguous()
        if len(x) <= self._AT_ONCE:
            y, largest = self._product(x)
            return torch.addcmul(self.bias, y, largest, out=y)
        y = torch.empty(len(x), len(self.bias))
        for vectors, place in zip(x.split(self._AT_ONCE), y.split(self._AT_ONCE), strict=True):
            torch.addcmul(self.bias, *self._product(vectors), out=place)
        return y

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        return F.gelu(self(x), approximate=approximate)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual.addcmul_(*self._product(x.float().contiguous())).add_(self.bias)


def has_integer_products() -> bool:
    """Whether this machine sums products of bytes as integers fast (VNNI), and this build of PyTorch lets it."""
    if not _has_x86_onednn():
        return False
    known = all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise"))
    return known and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()


def int8_linear(weight: Tensor, scale: Tensor, bias: Tensor | None) -> Linear:
    """The fastest layer here for what `quantise_rows` gave, and bias (N,)."""
    return (IntegerLinear if has_integer_products() else Int8Linear)(weight, scale, bias)


def plain_weight(linear: Linear) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of a layer in oneDNN's layout."""
    assert isinstance(linear, OneDNNLinear | OneDNNLinearBF16)
    return linear.plain()
