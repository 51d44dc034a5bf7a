"""When a GPT is worth packing, and which packed copies are kept.

A copy is used where the call itself is long enough to pay for it, never because an earlier call made one: the rounding,
and so the text of a seed, must not depend on what ran before.
"""

import os
import weakref

import torch
from torch import nn

from gpt2core.decoding.packed.linear import Weights, has_onednn
from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.kernels.dropout import Dropout
from gpt2core.model import GPT, Block, FeedForward, SelfAttention

# Packing takes about the time that 8 to 16 new tokens save (124M, 2 cores, fp32).
MIN_NEW_TOKENS = 16
# Share of the machine's memory that a copy may take which nobody asked for.
MAX_MEMORY_SHARE = 0.25

_PLAIN = {GPT, Block, SelfAttention, FeedForward, nn.Linear, nn.Embedding, nn.LayerNorm, nn.GELU, Dropout}
_PLAIN |= {nn.ModuleList}
_WEIGHTS: dict[torch.dtype, Weights] = {torch.float32: "fp32", torch.bfloat16: "bf16"}

# A parameter's identity, how often it was written, and where it lies.
_State = list[tuple["weakref.ref[nn.Parameter]", int, int]]
_seen: "weakref.WeakKeyDictionary[GPT, tuple[_State, PackedGPT | None]]" = weakref.WeakKeyDictionary()


def fastest(model: GPT | PackedGPT, new_tokens: int) -> GPT | PackedGPT:
    """What decodes `new_tokens` fastest: the model itself, or a packed copy of equal numbers up to rounding.

    A copy is kept from the second call with the same weights on, so that a model in training leaves none behind.
    """
    if isinstance(model, PackedGPT) or new_tokens < MIN_NEW_TOKENS or not _can_pack(model):
        return model
    state = _state(model)
    before, packed = _seen.get(model, (None, None))
    if before != state:
        _seen[model] = (state, None)
        return PackedGPT(model, _WEIGHTS[model.wte.weight.dtype])
    if packed is None:
        packed = PackedGPT(model, _WEIGHTS[model.wte.weight.dtype])
        _seen[model] = (state, packed)
    return packed


def is_plain(model: GPT) -> bool:
    """Whether all modules are those that the library makes, none replaced and none hooked."""
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return not hooked and all(type(module) in _PLAIN for module in model.modules())


def _can_pack(model: GPT) -> bool:
    """A plain GPT on a CPU: no dropout in use, no mixed types."""
    weights = _WEIGHTS.get(model.wte.weight.dtype)
    if model.training or weights is None or not has_onednn(weights) or not is_plain(model):
        return False
    size = 0
    for parameter in model.parameters():
        if parameter.device.type != "cpu" or parameter.dtype != model.wte.weight.dtype or parameter.is_inference():
            return False
        size += parameter.nbytes
    return size <= MAX_MEMORY_SHARE * _memory_bytes()


def _memory_bytes() -> int:
    if not hasattr(os, "sysconf"):  # Windows does not tell
        return 16 * 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _state(model: GPT) -> _State:
    return [(weakref.ref(p), p._version, p.data_ptr()) for p in model.parameters()]
