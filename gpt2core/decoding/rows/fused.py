"""One more token of a few rows in five Triton kernels a layer, where torch launches about fifteen.

A GPU reads a layer of GPT-2 in less time than it takes to launch a kernel, so the number of kernels is the time.
Sums are fp32; each kernel rounds its result to the model's dtype, as torch's own kernels do.
Shapes: B rows, C n_embd, H n_head, D head_dim, N outputs and K inputs of a linear layer, S tokens.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor, nn

from gpt2core.model import GPT, Block

# The fastest of twenty combinations on an H200 at 124M.
TOKENS_AT_A_TIME, ATTENTION_WARPS = 512, 16  # of a row's earlier tokens, in attention
WEIGHTS_AT_A_TIME, LINEAR_WARPS = 4096, 8  # of a linear layer, in one program


@triton.jit
def _embed(tokens, place, padding, wte, wpe, x, C, BLOCK_C: tl.constexpr):  # type: ignore[no-untyped-def]
    """x (B, C) = wte[tokens (B, 1)] + wpe[place (1,) - padding (B, 1)]."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK_C)
    inside = columns < C
    position = tl.maximum(tl.load(place) - tl.load(padding + row), 0)
    token = tl.load(wte + tl.load(tokens + row) * C + columns, mask=inside)
    at = tl.load(wpe + position * C + columns, mask=inside)
    tl.store(x + row * C + columns, (token.to(tl.float32) + at.to(tl.float32)).to(token.dtype), mask=inside)


@triton.jit
def _norm_linear(  # type: ignore[no-untyped-def]
    x, norm, norm_bias, eps, weight, bias, out, K, N,
    GELU: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out (B, N) = linear(layer_norm(x (B, K))), through GELU: 0 none, 1 tanh, 2 exact."""
    row, columns = tl.program_id(1), tl.arange(0, BLOCK_K)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, wanted = columns < K, outputs < N
    w = tl.load(weight + outputs[:, None] * K + columns[None, :], mask=wanted[:, None] & inside[None, :], other=0.0)
    scale = tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(norm_bias + columns, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(x + row * K + columns, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, h - tl.sum(h, axis=0) / K, 0.0)
    h = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / K + eps) * scale + shift
    h = h.to(w.dtype).to(tl.float32)
    y = tl.sum(w.to(tl.float32) * h[None, :], axis=1) + tl.load(bias + outputs, mask=wanted, other=0.0).to(tl.float32)
    if GELU == 1:
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))  # y / 2 (1 + tanh(sqrt(2 / pi) ...))
    elif GELU == 2:
        y = 0.5 * y * (1.0 + tl.math.erf(y * 0.7071067811865476))
    tl.store(out + row * N + outputs, y.to(w.dtype), mask=wanted)


@triton.jit
def _linear_add(y, weight, bias, x, K, N, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """x (B, N) += linear(y (B, K))."""
    row, columns = tl.program_id(1), tl.arange(0, BLOCK_K)
    outputs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside, wanted = columns < K, outputs < N
    w = tl.load(weight + outputs[:, None] * K + columns[None, :], mask=wanted[:, None] & inside[None, :], other=0.0)
    h = tl.load(y + row * K + columns, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(bias + outputs, mask=wanted, other=0.0).to(tl.float32)
    added = tl.sum(w.to(tl.float32) * h[None, :], axis=1) + offset
    before = tl.load(x + row * N + outputs, mask=wanted, other=0.0).to(tl.float32)
    tl.store(x + row * N + outputs, (before + added.to(w.dtype).to(tl.float32)).to(w.dtype), mask=wanted)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    qkv, keys, values, stride_row, stride_head, place, padding, out, scale, C,
    D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """out (B, C) of a token's qkv (B, 3 C) and the tokens before it; its key and value go into the cache."""
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, D)
    own = qkv + row * 3 * C + head * D + d
    q, k, v = tl.load(own).to(tl.float32) * scale, tl.load(own + C), tl.load(own + 2 * C)
    last, first = tl.load(place), tl.load(padding + row)
    base = row * stride_row + head * stride_head
    tl.store(keys + base + last * D + d, k)
    tl.store(values + base + last * D + d, v)
    highest = tl.sum(q * k.to(tl.float32), axis=0)
    total, mixed = 1.0, v.to(tl.float32)
    for start in range(0, last, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        seen = (s < last) & (s >= first)
        tile = base + s[:, None] * D + d[None, :]
        k_s = tl.load(keys + tile, mask=seen[:, None], other=0.0).to(tl.float32)
        v_s = tl.load(values + tile, mask=seen[:, None], other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(k_s * q[None, :], axis=1), float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=0))
        weights, kept = tl.exp(scores - higher), tl.exp(highest - higher)
        total = total * kept + tl.sum(weights, axis=0)
        mixed = mixed * kept + tl.sum(weights[:, None] * v_s, axis=0)
        highest = higher
    tl.store(out + row * C + head * D + d, (mixed / total).to(v.dtype))


class FusedLayers:
    """A GPT's embedding and blocks for one token of B rows at a time, at fixed addresses."""

    def __init__(self, model: GPT, store: Tensor) -> None:
        """`store` (L, 2, B, H, room, D) holds keys and values."""
        config, like = model.config, model.wte.weight
        self._model, self._store, rows = model, store, store.shape[2]
        self._x, self._attended = like.new_empty(rows, config.n_embd), like.new_empty(rows, config.n_embd)
        self._qkv, self._wide = like.new_empty(rows, 3 * config.n_embd), like.new_empty(rows, config.feed_forward_width)
        self._no_bias = like.new_zeros(3 * config.n_embd)
        self._gelu = {"tanh": 1, "none": 2}[config.gelu_approximation]

    def read(self, tokens: Tensor, place: Tensor, padding: Tensor) -> Tensor:
        """States (B, 1, C) before ln_f after tokens (B, 1), the `place`-th (1,) of rows with `padding` (B, 1)."""
        model, x, config = self._model, self._x, self._model.config
        width = config.n_embd
        _embed[(len(x),)](
            tokens, place, padding, model.wte.weight, model.wpe.weight, x, width,
            BLOCK_C=triton.next_power_of_2(width),
        )  # fmt: skip
        for layer, block in enumerate(model.h):
            assert isinstance(block, Block)
            keys, values = self._store[layer].unbind(0)  # each (B, H, room, D)
            self._normed(x, block.ln_1, block.attn.c_attn, self._qkv, 0)
            _attend[(len(x), config.n_head)](
                self._qkv, keys, values, keys.stride(0), keys.stride(1), place, padding, self._attended,
                config.head_dim**-0.5, width, D=config.head_dim, BLOCK_S=TOKENS_AT_A_TIME, num_warps=ATTENTION_WARPS,
            )  # fmt: skip
            self._added(self._attended, block.attn.c_proj, x)
            self._normed(x, block.ln_2, block.mlp.c_fc, self._wide, self._gelu)
            self._added(self._wide, block.mlp.c_proj, x)
        return x[:, None]

    def _normed(self, x: Tensor, norm: nn.LayerNorm, linear: nn.Linear, out: Tensor, gelu: int) -> None:
        blocks, grid = _blocks(linear, len(x))
        bias = self._no_bias if linear.bias is None else linear.bias
        _norm_linear[grid](
            x, norm.weight, norm.bias, norm.eps, linear.weight, bias, out, linear.in_features, linear.out_features,
            GELU=gelu, **blocks,
        )  # fmt: skip

    def _added(self, y: Tensor, linear: nn.Linear, x: Tensor) -> None:
        blocks, grid = _blocks(linear, len(x))
        _linear_add[grid](y, linear.weight, linear.bias, x, linear.in_features, linear.out_features, **blocks)


def _blocks(linear: nn.Linear, rows: int) -> tuple[dict[str, Any], tuple[int, int]]:
    """Block sizes of a linear layer, and the grid for `rows`."""
    inputs = triton.next_power_of_2(linear.in_features)
    outputs = max(1, WEIGHTS_AT_A_TIME // inputs)
    grid = (triton.cdiv(linear.out_features, outputs), rows)
    return {"BLOCK_K": inputs, "BLOCK_N": outputs, "num_warps": LINEAR_WARPS}, grid
