"""Any supported file or directory of weights as a `Source`: the format is found by content, not by name alone."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.importing.hf_directory import read_hf_directory
from gpt2core.importing.layouts import best_layout
from gpt2core.importing.llmc import is_llmc, read_llmc
from gpt2core.importing.source import Source, read_safetensors, read_small_json
from gpt2core.importing.tf_checkpoint import find_tf_checkpoint, read_tf_checkpoint
from gpt2core.importing.torch_file import Placeholder, is_torch_file, read_torch_file
from gpt2core.storage.files import inside

WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
# Keys under which checkpoints keep the model's settings, the most reliable first.
_SETTINGS_KEYS = ("model_args", "model_config", "config", "hparams", "hyper_parameters", "args", "cfg")
# Our name of a size -> other projects' names.
_SIZE_NAMES = {
    "n_head": ("n_head", "n_heads", "num_heads", "num_attention_heads", "heads"),
    "n_layer": ("n_layer", "n_layers", "num_layers", "num_hidden_layers"),
    "n_embd": ("n_embd", "emb_dim", "d_model", "hidden_size", "n_embed", "embed_dim"),
    "block_size": ("block_size", "context_length", "n_positions", "n_ctx", "max_seq_len", "max_len"),
}
_UNREADABLE = {
    b"GGUF": "a GGUF file of llama.cpp; export the model as safetensors where it was made",
    b"\x89HDF": "an HDF5 file of Keras; save it as a Hugging Face directory (`save_pretrained`) where it was made",
}


def read_source(path: Path) -> Source:
    """The weights at `path`, a file or a directory. Raises UserError where they cannot be read."""
    if path.is_dir():
        return _read_directory(path)
    if path.with_name(f"{path.name}.index").is_file():
        return _read_tf(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder.")
    if not path.is_file():
        raise UserError(f"{path} is no file of weights, but a device or a pipe.")
    if path.suffix == ".index" or re.search(r"\.data-\d{5}-of-\d{5}$", path.name):
        return _read_tf(Path(str(path).rpartition(".")[0]))
    with path.open("rb") as handle:
        start = handle.read(16)
    if is_llmc(start):
        tensors, sizes = read_llmc(path)
        return Source("an llm.c checkpoint", tensors, sizes, origin="its header")
    if is_torch_file(start):
        return _from_object(read_torch_file(path), path)
    for magic, what in _UNREADABLE.items():
        if start.startswith(magic):
            raise UserError(f"{path} is {what}.")
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return Source("a safetensors file", read_safetensors(path))
    raise UserError(f"{path} is no file of weights: neither of torch.save, nor safetensors, nor llm.c.")


def _read_directory(directory: Path) -> Source:
    if os.path.lexists(directory / "config.json"):
        return read_hf_directory(directory)
    prefix = find_tf_checkpoint(directory)
    if prefix is not None:
        return _read_tf(prefix)
    if (directory / "adapter_config.json").exists():
        raise UserError(
            f"{directory} is a LoRA adapter, which is no model alone; load it with peft, call `merge_and_unload()`, "
            "save that model and import it."
        )
    files = [file for file in sorted(directory.iterdir()) if file.suffix in WEIGHT_SUFFIXES and not file.is_dir()]
    if len(files) == 1:
        inside(files[0], directory)
        return read_source(files[0])
    if not files:
        raise UserError(f"{directory} holds no weights: no config.json, no {', '.join(WEIGHT_SUFFIXES)} file.")
    raise UserError(f"{directory} holds {len(files)} files of weights; name one: {', '.join(f.name for f in files)}.")


def _read_tf(prefix: Path) -> Source:
    hparams = inside(prefix.parent / "hparams.json", prefix.parent)
    tensors, notes = read_tf_checkpoint(prefix)
    values = read_small_json(hparams) if hparams.is_file() else {}
    kind = "a TensorFlow checkpoint of GPT-2 (gpt-2-simple, openai/gpt-2)"
    return Source(kind, tensors, _sizes_in(values), values, "hparams.json", notes)


def _from_object(value: Any, path: Path) -> Source:
    """The state dict inside an object of torch.save, at any depth up to three."""
    found = list(_state_dicts(value, set()))
    if not found:
        raise UserError(f"{path} holds no state dict (names with tensors); import the file with the model's weights.")
    # The state dict with the most GPT-2 names; of equal ones the first.
    where, tensors = max(found, key=lambda item: len(best_layout(item[1]).parts_of(item[1])))
    notes = [f"the weights are under {where!r} of the file"] if where else []
    others = [other for other, state in found if other != where and len(best_layout(state).parts_of(state)) > 4]
    if others:
        notes.append(f"other weights are in the file and not used: {', '.join(repr(other) for other in others)}")
    settings, origin = _settings_in(value)
    kind = f"a PyTorch checkpoint ({', '.join(map(str, list(value)[:8]))})" if where else "a PyTorch state dict"
    if {"model", "model_args"} <= set(value):
        kind = "a nanoGPT checkpoint"
    return Source(kind, tensors, _sizes_in(settings), settings, origin, notes)


def _state_dicts(
    value: Any, seen: set[int], where: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """`seen`: a dictionary may stand in a file a billion times."""
    if not isinstance(value, dict) or depth > 3 or id(value) in seen:
        return
    seen.add(id(value))
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    if len(tensors) >= 4:
        yield where, tensors
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _state_dicts(item, seen, f"{where}.{key}" if where else str(key), depth + 1)


def _settings_in(value: dict[str, Any]) -> tuple[dict[str, Any], str]:
    for key in _SETTINGS_KEYS:
        settings = value.get(key)
        if isinstance(settings, Placeholder):
            settings = vars(settings)
        if isinstance(settings, dict) and _sizes_in(settings):
            return settings, key
    return {}, ""


def _sizes_in(settings: dict[str, Any]) -> dict[str, int]:
    sizes = {}
    for ours, names in _SIZE_NAMES.items():
        value = next((settings[name] for name in names if name in settings), None)
        if isinstance(value, int) and not isinstance(value, bool):
            sizes[ours] = value
    return sizes
