"""The config of imported weights: from tensor shapes, and from the file's settings where shapes do not determine it."""

from typing import Any

import torch

from gpt2core.config import GPT2_VOCAB_SIZE, GPTConfig
from gpt2core.errors import UserError
from gpt2core.importing.layouts import GPT2_NAMES
from gpt2core.importing.parts import Parts
from gpt2core.importing.probing import USUAL_HEAD_DIM
from gpt2core.importing.source import Source


def infer_config(parts: Parts, source: Source, n_head: int | None, activation: str | None) -> GPTConfig:
    """Raises UserError where shapes and settings disagree."""
    wte = parts["wte.weight"]
    if wte.ndim != 2:
        raise UserError(f"the token embedding is {tuple(wte.shape)}, not (vocabulary, width).")
    width, block_size = wte.shape[1], parts["wpe.weight"].shape[-2]
    found = {"n_layer": parts.num_layers, "n_embd": width, "block_size": block_size}
    for name, value in found.items():
        said = source.sizes.get(name, value)
        if said != value:
            raise UserError(f"{name} is {value} by the tensors, but {said} by {source.origin}; the file is not whole.")
    _check_vocabulary(wte.shape[0], parts.notes)
    heads = _n_head(width, source, n_head, parts.notes)
    settings = source.settings
    untied_head = _has_untied_head(parts, settings)
    inner = parts["h.0.mlp.fc.weight"].numel() // width
    return GPTConfig(
        vocab_size=GPT2_VOCAB_SIZE,
        block_size=block_size,
        n_layer=parts.num_layers,
        n_head=heads,
        n_embd=width,
        n_inner=None if inner == 4 * width else inner,
        drop_rate=_drop_rate(settings),
        qkv_bias=any(parts.has(f"attn.{part}.bias") for part in ("qkv", "q", "k", "v")),
        layer_norm_epsilon=float(settings.get("layer_norm_epsilon", 1e-5)),
        activation_function=activation or _activation(parts, source),
        tie_word_embeddings=not untied_head,
    )


def _check_vocabulary(rows: int, notes: list[str]) -> None:
    if rows < GPT2_VOCAB_SIZE:
        raise UserError(
            f"the vocabulary has {rows:,} tokens, GPT-2's has {GPT2_VOCAB_SIZE:,}: the model was trained with another "
            "tokenizer (nanoGPT's characters in meta.pkl, for one), which this project does not have."
        )
    if rows > GPT2_VOCAB_SIZE:
        notes.append(
            f"vocabulary {rows:,}: the {rows - GPT2_VOCAB_SIZE:,} rows after GPT-2's {GPT2_VOCAB_SIZE:,} are left out "
            "(padding or added tokens)"
        )


def _n_head(width: int, source: Source, asked: int | None, notes: list[str]) -> int:
    said = source.sizes.get("n_head")
    if asked is not None and said is not None and asked != said:
        raise UserError(f"--n-head is {asked}, but {source.origin} of the file says {said}; leave --n-head out.")
    heads = asked or said
    if heads is None:  # `choose_heads_and_orientation` decides
        return width // USUAL_HEAD_DIM if width % USUAL_HEAD_DIM == 0 else 1
    if heads < 1 or width % heads:
        fitting = [n for n in range(1, width + 1) if width % n == 0 and 8 <= width // n <= 256]
        raise UserError(
            f"n_head ({heads}) does not divide n_embd ({width}); give --n-head, one of {', '.join(map(str, fitting))}."
        )
    notes.append(f"n_head {heads}: {'as given' if asked else f'from {source.origin}'}")
    return heads


def _drop_rate(settings: dict[str, Any]) -> float:
    """That of the settings; GPT-2's 0.1 where they have none."""
    value = settings.get("drop_rate", settings.get("dropout", 0.1))
    return float(value) if isinstance(value, int | float) and 0 <= value < 1 else 0.1


def _activation(parts: Parts, source: Source) -> str:
    if source.settings.get("hugging_face"):
        return str(source.settings["activation_function"])
    if source.kind == "a nanoGPT checkpoint":
        parts.notes.append(
            "activation: the exact GELU, as nanoGPT has it since June 2023 (--activation gelu_new for older)"
        )
        return "gelu"
    fused = parts.tensors.get("h.0.attn.qkv.weight")
    if parts.layout is GPT2_NAMES and fused is not None and fused.shape[0] > fused.shape[1]:  # not transformers' Conv1D
        parts.notes.append(
            "activation: taken as GPT-2's tanh approximation of GELU; nanoGPT has the exact one (--activation gelu)"
        )
    return parts.layout.activation


def _has_untied_head(parts: Parts, settings: dict[str, Any]) -> bool:
    head, wte = parts.tensors.get("lm_head.weight"), parts["wte.weight"]
    bias = parts.tensors.get("lm_head.bias")
    if bias is not None and bool(bias.any()):
        raise UserError("the head has a bias that is not zero, which GPT-2's head has not; it cannot be kept.")
    if head is None:
        if settings.get("tie_word_embeddings") is False:
            raise UserError("config.json says that the head is its own, but there is no lm_head.weight.")
        parts.notes.append("head: none in the file, so tied to the token embedding")
        return False
    if head.shape == wte.shape and torch.equal(head, wte):
        parts.notes.append("head: tied, equal to the token embedding")
        return False
    if head.shape != wte.shape and head.t().shape != wte.shape:
        raise UserError(f"the head is {tuple(head.shape)}, the token embedding {tuple(wte.shape)}; they must agree.")
    though = ", though config.json says tied" if settings.get("tie_word_embeddings") else ""
    parts.notes.append(f"head: its own, not tied to the token embedding{though}; kept as `tie_word_embeddings: false`")
    return True
