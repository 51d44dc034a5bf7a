"""The Hugging Face layout: config.json, safetensors, and Conv1D's transposed matrices.

Tensors go in and out by name; `gpt2core.model` makes a model of them.
"""

import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError
from gpt2core.extras import needs_extra
from gpt2core.storage.bounds import read_whole
from gpt2core.storage.claims import check_parameters
from gpt2core.storage.files import atomic_path, inside, parse_json, sha256_file, write_json

log = logging.getLogger(__name__)

# The hub's client resumes a download by itself; these attempts are for a hub that does not answer.
DOWNLOAD_ATTEMPTS, DOWNLOAD_PAUSE_SECONDS = 3, 1.0
WEIGHTS = "model.safetensors"
RELEASED = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
# transformers keeps these as Conv1D, (in, out); nn.Linear is (out, in).
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# transformers' names of GELU -> `GPTConfig.activation_function`.
ACTIVATION_NAMES = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu"}
# Settings of transformers' GPT2Config that change the architecture, with the values that GPT-2 has.
FIXED_SETTINGS = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def read_model(directory: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The config and the tensors, as transformers names them. Raises UserError where one is damaged or missing."""
    config = read_config(directory)
    tensors = read_tensors(directory)
    try:
        check_parameters(config, tensors, "config.json")
    except UserError as error:
        raise UserError(f"{directory}: weights of another architecture: {error}") from None
    return config, tensors


def find_weights(name_or_directory: str | Path) -> Path:
    """The directory that holds the weights; a name is looked up in the hub's cache, then on the hub."""
    directory = Path(name_or_directory)
    if directory.is_dir():
        return directory
    name = str(name_or_directory)
    if name not in RELEASED:
        rule = f"is neither a directory nor one of {', '.join(RELEASED)}"
        raise UserError(key="name_or_directory", value=name, rule=rule)
    with needs_extra(f"the released weights {name!r}"):
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = ["config.json", WEIGHTS]
    with suppress(LocalEntryNotFoundError, FileNotFoundError):
        found = Path(snapshot_download(RELEASED[name], allow_patterns=patterns, local_files_only=True))
        if all((found / file).exists() for file in patterns):  # else a download was cut between the two
            return found
    attempts = 1 if constants.HF_HUB_OFFLINE else DOWNLOAD_ATTEMPTS
    for attempt in range(attempts):
        try:
            found = Path(snapshot_download(RELEASED[name], allow_patterns=patterns))
            _check_download(found)
            return found
        except Exception as error:  # the hub client raises many kinds, for as many ways of being offline
            problem = str(error) if isinstance(error, _DamagedDownloadError) else type(error).__name__
        if attempt + 1 < attempts:
            time.sleep(DOWNLOAD_PAUSE_SECONDS * 2**attempt)
    raise UserError(
        rule="the weights of '{name}' are not in the Hugging Face cache and the hub cannot be reached ({problem}). "
        "On a machine with a network run `hf download {repository} config.json model.safetensors --local-dir {name}`, "
        "copy that folder here and set {name_or_directory} to its path",
        name=name,
        problem=problem,
        repository=RELEASED[name],
    )


class _DamagedDownloadError(Exception):
    """A downloaded file differs from the hub's."""


def _check_download(directory: Path) -> None:
    """The cache names a large file by its sha256 on the hub. A file with another one is removed; raises then."""
    for file in directory.iterdir():
        blob = file.resolve()
        if re.fullmatch("[0-9a-f]{64}", blob.name) and sha256_file(blob) != blob.name:
            blob.unlink()
            file.unlink(missing_ok=True)
            raise _DamagedDownloadError(f"{file.name} came damaged")


def read_config(directory: Path) -> GPTConfig:
    """GPTConfig of a directory's config.json. Raises UserError for another architecture."""
    path = directory / "config.json"
    try:
        values = parse_json(read_whole(inside(path, directory)).decode())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {directory} is not a model in the Hugging Face layout.") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        kind = values.get("model_type") if isinstance(values, dict) else None
        raise UserError(f"{path}: model_type is {kind!r}, not 'gpt2'; only GPT-2 models can be loaded.")
    for key, allowed in FIXED_SETTINGS.items():
        if values.get(key, allowed[0]) not in allowed:
            raise UserError(f"{path}: {key} is {values[key]!r}; GPT-2 has {allowed[0]!r}, others are not supported.")
    activation = values.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATION_NAMES:
        known = ", ".join(ACTIVATION_NAMES)
        raise UserError(f"{path}: activation_function is {activation!r}; supported are {known}.")
    try:
        return GPTConfig(
            vocab_size=int(values["vocab_size"]),
            block_size=int(values["n_positions"]),
            n_layer=int(values["n_layer"]),
            n_head=int(values["n_head"]),
            n_embd=int(values["n_embd"]),
            n_inner=int(values["n_inner"]) if values.get("n_inner") is not None else None,
            drop_rate=float(values.get("resid_pdrop", 0.1)),
            qkv_bias=bool(values.get("qkv_bias", True)),
            layer_norm_epsilon=float(values.get("layer_norm_epsilon", 1e-5)),
            activation_function=ACTIVATION_NAMES[activation],
            tie_word_embeddings=bool(values.get("tie_word_embeddings", True)),
        )
    except KeyError as error:
        raise UserError(f"{path}: the key {error.args[0]!r} is missing.") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: a size is no number ({error}).") from None


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a directory's safetensors, one file or, where that is not there, its shards, as transformers does.

    Raises UserError when damaged or absent.
    """
    whole, index = directory / WEIGHTS, directory / f"{WEIGHTS}.index.json"
    if whole.exists() and index.exists():
        log.warning("%s is passed over with its shards: %s is there, which transformers reads too", index, whole.name)
    files = [whole]
    if index.exists() and not whole.exists():
        # Only the file's name counts: an index must not lead out of its directory.
        try:
            weight_map = parse_json(read_whole(inside(index, directory)).decode())["weight_map"]
            files = sorted({directory / Path(name).name for name in weight_map.values()})
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index} is damaged; fetch or save it again.") from None
    tensors: dict[str, Tensor] = {}
    for path in files:
        if not path.exists():
            hint = f" pytorch_model.bin is not loaded as it is; run `gpt2 import {directory} --output-dir NEW`." * any(
                directory.glob("pytorch_model*.bin")
            )
            raise UserError(f"{path} is missing.{hint}")
        try:
            with safe_open(inside(path, directory), framework="pt") as handle:
                tensors.update({key: handle.get_tensor(key) for key in handle.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); fetch or save it again.") from None
    return tensors


def load_state(model: nn.Module, config: GPTConfig, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy tensors, named as transformers names them, into a GPT. Raises UserError naming what does not fit."""
    state = from_hf_state(tensors, tied=config.tie_word_embeddings)
    if not config.qkv_bias:  # written as zeros for transformers, which always has one
        state = {k: v for k, v in state.items() if not (k.endswith("attn.c_attn.bias") and not v.any())}
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    problems = [f"{name} is missing" for name in expected if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source}: weights of another architecture: {'; '.join(problems[:3])}{more}.")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])


def from_hf_state(tensors: dict[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """Tensors under this library's names, matrices (out, in); without the head where it is tied."""
    state = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("transformer.")
        # Buffers of old releases: the causal mask and its fill value.
        if name.endswith((".attn.bias", ".attn.masked_bias")) or (tied and name == "lm_head.weight"):
            continue
        state[name] = tensor.t() if name.endswith(TRANSPOSED) else tensor
    head, wte = tensors.get("lm_head.weight"), state.get("wte.weight")
    if tied and head is not None and wte is None:  # safetensors' `save_model` keeps one name of a shared tensor
        state["wte.weight"] = head
    elif tied and head is not None and wte is not None and not torch.equal(head, wte):
        raise UserError(
            "lm_head.weight differs from wte.weight, but config.json says they are tied; "
            'if the head is its own, write `"tie_word_embeddings": false` into config.json.'
        )
    return state


def to_hf_state(
    parameters: Mapping[str, Tensor], config: GPTConfig, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Tensors as transformers' GPT2LMHeadModel names and shapes them; a missing qkv bias is written as zeros."""
    state = {}
    for name, parameter in parameters.items():
        tensor = parameter.detach().to("cpu", dtype)
        key = name if name == "lm_head.weight" else f"transformer.{name}"
        state[key] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous()
    if not config.qkv_bias:
        for layer in range(config.n_layer):
            state[f"transformer.h.{layer}.attn.c_attn.bias"] = torch.zeros(3 * config.n_embd, dtype=dtype)
    return state


def hf_config(config: GPTConfig) -> dict[str, Any]:
    """`config` as transformers' config.json."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": config.n_inner,
        "activation_function": config.activation_function,
        "resid_pdrop": config.drop_rate,
        "embd_pdrop": config.drop_rate,
        "attn_pdrop": config.drop_rate,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "initializer_range": 0.02,
        "qkv_bias": config.qkv_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": min(50256, config.vocab_size - 1),
        "eos_token_id": min(50256, config.vocab_size - 1),
        "dtype": "float32",
    }


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError, with its errno, where the disk refuses."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def write_model(
    config: GPTConfig, parameters: Mapping[str, Tensor], directory: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write the files of `GPT.save_pretrained`, each atomically; `parameters` have this library's names."""
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_path(directory / WEIGHTS) as partial:
        save_tensors(to_hf_state(parameters, config, dtype), partial, metadata={"format": "pt"})
    values = {**hf_config(config), "dtype": str(dtype).removeprefix("torch.")}
    write_json(directory / "config.json", values)
    eos = values["eos_token_id"]
    write_json(directory / "generation_config.json", {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos})
