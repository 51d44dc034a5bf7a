"""Builds a GPT from imported parts: transposes matrices, fuses q, k and v, fills missing biases with zeros.

Shapes: C n_embd, F width of the feed-forward layer.
"""

import re

import torch
from torch import Tensor

from gpt2core.config import GPT2_VOCAB_SIZE, GPTConfig
from gpt2core.errors import UserError
from gpt2core.importing.parts import MATRICES, NORMS, Parts
from gpt2core.model import GPT


def build_model(parts: Parts, config: GPTConfig) -> GPT:
    """A GPT with the tensors of `parts`, in fp32 and eval mode. Raises UserError naming a shape that does not fit."""
    transposed = _orientations(parts, config)
    model = GPT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = _tensor_for(name, parts, transposed, parameter)
            if tensor.shape != parameter.shape:
                raise UserError(f"{name} comes out as {tuple(tensor.shape)}, expected {tuple(parameter.shape)}.")
            parameter.copy_(tensor)
    missing = [stem for stem in (*MATRICES, *NORMS) if not parts.has(f"{stem}.bias")]
    if missing or not config.qkv_bias:
        which = "no bias anywhere" if len(missing) == 5 and not config.qkv_bias else f"no bias in {', '.join(missing)}"
        if not missing:
            which = "no bias in the query, key and value projections"
        zeros = "; the others are zeros now, which computes the same, and a further training may move them"
        parts.notes.append(which + (zeros if missing else ""))
    return model.eval()


def _tensor_for(name: str, parts: Parts, transposed: dict[str, bool], parameter: Tensor) -> Tensor:
    """The source's tensor for a parameter of GPT, zeros for a bias that the source lacks."""
    match = re.fullmatch(r"(h\.\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        if name.endswith("bias") and name not in parts.tensors:
            return torch.zeros_like(parameter)
        tensor = parts[name]
        if name == "lm_head.weight" and tensor.shape[0] == parts["wte.weight"].shape[1] != tensor.shape[1]:
            tensor = tensor.t()
        rows = GPT2_VOCAB_SIZE if name in ("wte.weight", "lm_head.weight") else None
        return tensor.reshape(tensor.shape[-2:])[:rows] if tensor.ndim > 1 else tensor
    block, stem, leaf = match.groups()
    ours = {"attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out", "mlp.c_fc": "mlp.fc", "mlp.c_proj": "mlp.proj"}
    part = ours.get(stem, stem)
    if part == "attn.qkv" and not parts.has("attn.qkv.weight"):
        pieces = [_piece(f"{block}.attn.{letter}.{leaf}", parts, transposed, parameter) for letter in "qkv"]
        return torch.cat(pieces)
    found = parts.tensors.get(f"{block}.{part}.{leaf}")
    if found is None:
        return torch.zeros_like(parameter)
    return found.t() if leaf == "weight" and transposed.get(part) else found


def _piece(name: str, parts: Parts, transposed: dict[str, bool], parameter: Tensor) -> Tensor:
    found = parts.tensors.get(name)
    if found is None:
        return torch.zeros(parameter.shape[0] // 3)
    return found.t() if found.ndim == 2 and transposed["attn.q"] else found


def _orientations(parts: Parts, config: GPTConfig) -> dict[str, bool]:
    """Part -> whether its matrix is (in, out), as transformers' Conv1D, and must become nn.Linear's (out, in)."""
    C, F = config.n_embd, config.feed_forward_width
    by_shape: dict[str, bool] = {}
    for part, rows, columns in (("attn.qkv", 3 * C, C), ("mlp.fc", F, C), ("mlp.proj", C, F)):
        if not parts.has(f"{part}.weight"):
            continue
        shape = tuple(parts[f"h.0.{part}.weight"].shape)
        if sorted(shape) != sorted((rows, columns)):
            raise UserError(f"{part} is {shape}, expected {(rows, columns)} or {(columns, rows)}.")
        if rows != columns:
            by_shape[part] = shape == (columns, rows)
    if parts.layout.linear:
        square, reason = False, "as this program writes them"
    elif "attn.qkv" in by_shape:
        square, reason = by_shape["attn.qkv"], "as the fused q, k, v beside them"
    elif by_shape:
        square, reason = by_shape["mlp.fc"], "as the feed-forward layer, whose shape tells"
    else:
        square, reason = False, "assumed, for all matrices are square; check a text"
    kind = {True: "Conv1D, (in, out)", False: "nn.Linear, (out, in)"}
    kinds = sorted({kind[value] for value in (*by_shape.values(), square)})
    parts.notes.append(f"matrices: {' and '.join(kinds)}; square ones {kind[square].partition(',')[0]}, {reason}")
    names = ("attn.q", "attn.qkv", "attn.out", "mlp.fc", "mlp.proj")
    return {part: by_shape.get(part, square) for part in names}
