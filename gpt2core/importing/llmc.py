"""The .bin checkpoints of karpathy/llm.c: 256 int32 of header, then all tensors (train_gpt2.py, write_model)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2core.errors import UserError

MAGIC = 20240326
HEADER_BYTES = 256 * 4
# version: bytes a number; 3 is fp32 and 5 is bf16, both with a padded vocabulary.
VERSIONS = {3: 4, 5: 2}


def is_llmc(start: bytes) -> bool:
    return len(start) >= 4 and int.from_bytes(start[:4], "little") == MAGIC


def read_llmc(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under GPT-2's names, matrices (out, in), and the sizes of the header. Raises UserError when damaged."""
    header = np.fromfile(path, dtype="<i4", count=256)
    if len(header) < 256 or int(header[1]) not in VERSIONS:
        version = int(header[1]) if len(header) > 1 else None
        raise UserError(f"{path}: an llm.c file of version {version}; versions 3 (fp32) and 5 (bf16) can be read.")
    block_size, vocab_size, n_layer, n_head, width, padded = (int(value) for value in header[2:8])
    sizes = {
        "block_size": block_size,
        "vocab_size": vocab_size,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": width,
    }
    if min(sizes.values()) < 1 or padded < vocab_size:
        raise UserError(f"{path}: the header's sizes make no model ({sizes}); fetch the file again.")
    shapes = _shapes(block_size, padded, n_layer, width)
    itemsize = VERSIONS[int(header[1])]
    expected = HEADER_BYTES + itemsize * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    if path.stat().st_size != expected:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, its header says {expected:,}; fetch it again.")
    dtype = torch.float32 if itemsize == 4 else torch.bfloat16
    content = torch.from_file(str(path), shared=False, size=expected // itemsize, dtype=dtype)
    tensors, start = {}, HEADER_BYTES // itemsize
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        tensor = content[start : start + count].view(shape)
        start += count
        if name.startswith("h."):  # all layers of a kind are one tensor
            tensors.update({f"h.{layer}.{name[2:]}": tensor[layer] for layer in range(n_layer)})
        else:
            tensors[name] = tensor
    tensors["wte.weight"] = tensors["wte.weight"][:vocab_size]
    return tensors, sizes


def _shapes(block_size: int, padded: int, n_layer: int, width: int) -> dict[str, tuple[int, ...]]:
    """In the order of the file."""
    return {
        "wte.weight": (padded, width),
        "wpe.weight": (block_size, width),
        "h.ln_1.weight": (n_layer, width),
        "h.ln_1.bias": (n_layer, width),
        "h.attn.c_attn.weight": (n_layer, 3 * width, width),
        "h.attn.c_attn.bias": (n_layer, 3 * width),
        "h.attn.c_proj.weight": (n_layer, width, width),
        "h.attn.c_proj.bias": (n_layer, width),
        "h.ln_2.weight": (n_layer, width),
        "h.ln_2.bias": (n_layer, width),
        "h.mlp.c_fc.weight": (n_layer, 4 * width, width),
        "h.mlp.c_fc.bias": (n_layer, 4 * width),
        "h.mlp.c_proj.weight": (n_layer, width, 4 * width),
        "h.mlp.c_proj.bias": (n_layer, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
