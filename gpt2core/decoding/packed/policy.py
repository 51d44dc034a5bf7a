"""When a GPT is packed for decoding, and which packed copies are cached.

A copy is used where the call itself is long enough to gain from it, never because an earlier call made one: the
rounding, and so the text of a seed, must not depend on earlier calls.
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
# Largest share of the machine's memory for a copy that the caller did not request.
MAX_MEMORY_SHARE = 0.25

_PLAIN = {GPT, Block, SelfAttention, FeedForward, nn.Linear, nn.Embedding, nn.LayerNorm, nn.GELU, Dropout}
_PLAIN |= {nn.ModuleList}
_WEIGHTS: dict[torch.dtype, Weights] = {torch.float32: "fp32", torch.bfloat16: "bf16"}

# A parameter's identity, its version counter and its address.
_State = list[tuple["weakref.ref[nn.Parameter]", int, int]]
_seen: "weakref.WeakKeyDictionary[GPT, tuple[_State, PackedGPT | None]]" = weakref.WeakKeyDictionary()


def fastest(model: GPT | PackedGPT, new_tokens: int) -> GPT | PackedGPT:
    """The faster for `new_tokens`: the model itself, or a packed copy with equal results up to rounding.

    A copy is cached from the second call with the same weights on, so that a model in training leaves none in memory.
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
    """Whether all modules are the library's own, without replacements and hooks."""
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
    if not hasattr(os, "sysconf"):  # Windows
        return 16 * 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _state(model: GPT) -> _State:
    return [(weakref.ref(p), p._version, p.data_ptr()) for p in model.parameters()]
