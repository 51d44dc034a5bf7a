"""Maps the tensors of a file to the parts of a GPT-2, and checks that all are present."""

import re
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.importing.layouts import Layout, best_layout
from gpt2core.importing.source import Source

NORMS = ("ln_1", "ln_2")
MATRICES = ("attn.out", "mlp.fc", "mlp.proj")


@dataclass
class Parts:
    """The source's tensors by part name, complete for one GPT-2."""

    layout: Layout
    tensors: dict[str, Tensor]
    num_layers: int
    notes: list[str] = field(default_factory=list)

    def has(self, part: str) -> bool:
        """Whether the blocks have this part; `sort_parts` checks that all have it or none."""
        return f"h.0.{part}" in self.tensors

    def __getitem__(self, part: str) -> Tensor:
        return self.tensors[part]


def sort_parts(source: Source) -> Parts:
    """Find the layout, and each tensor's part.

    Raises UserError naming what cannot be mapped, what is missing, and what is not a plain floating-point tensor.
    """
    layout = best_layout(source.tensors)
    known = layout.parts_of(source.tensors)
    others = {name: tensor for name, tensor in source.tensors.items() if name not in known}
    # A mask that many names share is looked at once.
    buffers = {key: is_buffer(tensor) for key, tensor in {_place(t): t for t in others.values()}.items()}
    unknown = [name for name, tensor in others.items() if not buffers[_place(tensor)]]
    if len(known) < 4:
        raise UserError(f"no known layout of GPT-2: {_named(source.tensors, list(source.tensors))}.")
    if unknown:
        raise UserError(
            f"of {len(source.tensors)} tensors {len(known)} are known ({layout.name}), but not "
            f"{_named(source.tensors, unknown)}; what they compute would be lost. If they are no part of the model, "
            "save a state dict without them."
        )
    tensors: dict[str, Tensor] = {}
    for name, part in known.items():
        tensor = plain_tensor(name, source.tensors[name])
        if part in tensors and not torch.equal(tensors[part], tensor):
            raise UserError(f"two different tensors stand for {part}, one of them {name}; save one model only.")
        tensors[part] = tensor
    parts = Parts(layout, tensors, _number_of_layers(tensors))
    _check_complete(parts)
    left_out = len(source.tensors) - len(known)
    if left_out:
        parts.notes.append(f"{left_out} buffers (causal masks and the like) are not needed")
    return parts


def _place(tensor: Tensor) -> tuple[object, ...]:
    """The same for tensors that are the same numbers in memory."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return (id(tensor),)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_quantized


def is_buffer(tensor: Tensor) -> bool:
    """A constant of the architecture: the causal mask in any spelling, its fill value, or position numbers."""
    if tensor.numel() <= 1:
        return True
    if not _is_stored(tensor):  # comparing it would allocate its whole claimed size
        return False
    if not tensor.dtype.is_floating_point and tensor.squeeze().ndim == 1:
        return bool(torch.equal(tensor.squeeze().long(), torch.arange(tensor.numel())))
    if tensor.ndim < 2 or tensor.shape[-1] != tensor.shape[-2] or tensor.numel() != tensor.shape[-1] ** 2:
        return False
    mask = tensor.reshape(tensor.shape[-2:])
    lower = torch.ones(mask.shape, dtype=torch.bool).tril()
    if mask.dtype.is_floating_point and bool((mask.isinf() | (mask < -1e3)).any()):  # added to the scores
        return bool(torch.equal(mask == 0, lower))
    return bool(torch.equal(mask.float(), lower.float()) or torch.equal(mask.float(), (~lower).float()))


def _is_stored(tensor: Tensor) -> bool:
    """Whether the storage holds all elements, none repeated by strides."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def plain_tensor(name: str, tensor: Tensor) -> Tensor:
    """The tensor; raises UserError for one that is quantised, sparse, repeated beyond what is stored, or not finite."""
    if not tensor.dtype.is_floating_point or tensor.layout != torch.strided or tensor.is_meta:
        raise UserError(f"{name} is {tensor.dtype} and {tensor.layout}: weights must be fp16, bf16, fp32 or fp64.")
    if not _is_stored(tensor):
        raise UserError(f"{name} claims {tuple(tensor.shape)}, more than is stored of it; save the model again.")
    if not bool(tensor.isfinite().all()):
        raise UserError(f"{name} holds NaN or infinity: the training diverged; import an earlier checkpoint.")
    return tensor


def _number_of_layers(tensors: dict[str, Tensor]) -> int:
    numbers = {int(match[1]) for name in tensors if (match := re.match(r"h\.(\d+)\.", name))}
    if not numbers:
        raise UserError("no layers were found (h.0, blocks.0, trf_blocks.0 ...): these are not the weights of a GPT-2.")
    missing = sorted(set(range(max(numbers) + 1)) - numbers)
    if missing:
        raise UserError(f"layer {missing[0]} of 0 to {max(numbers)} is missing; the file is not whole.")
    return max(numbers) + 1


def _check_complete(parts: Parts) -> None:
    """Raises UserError unless each needed part is there, and each bias in all layers or in none."""
    fused = any(name.endswith("attn.qkv.weight") for name in parts.tensors)
    attention = ("attn.qkv",) if fused else ("attn.q", "attn.k", "attn.v")
    needed = ["wte.weight", "wpe.weight", "ln_f.weight"]
    stems = [*attention, *MATRICES, *NORMS]
    needed += [f"h.{layer}.{stem}.weight" for layer in range(parts.num_layers) for stem in stems]
    counts = Counter(re.sub(r"^h\.\d+\.", "", name) for name in parts.tensors if name.startswith("h."))
    some = {f"{stem}.bias" for stem in stems if 0 < counts[f"{stem}.bias"] < parts.num_layers}
    needed += [f"h.{layer}.{name}" for layer in range(parts.num_layers) for name in sorted(some)]
    missing = [name for name in needed if name not in parts.tensors]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"a GPT-2 {parts.layout.name}, but without {', '.join(missing[:3])}{more}: the file is not whole, or it is "
            "another model."
        )


def _named(tensors: dict[str, Tensor], names: list[str]) -> str:
    shown = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
