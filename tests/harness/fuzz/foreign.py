"""Weights as other programs write them, damaged: torch.save, safetensors, llm.c, TensorFlow."""

import io
import json
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from gpt2core.config import GPTConfig
from gpt2core.importing import import_model
from gpt2core.model import GPT
from tests.harness.fuzz.models import FULL, SMALL, spoil_folder, spoiled_safetensors
from tests.harness.fuzz.mutate import odd_text, spoiled, spoiled_within
from tests.support.tensorflow_checkpoint import write_checkpoint as write_tensorflow


def prepare_import(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    files: list[tuple[str, bytes, tuple[int, int]]] = []
    for config in (SMALL, FULL):
        state = {f"transformer.{name}": tensor for name, tensor in GPT(config).state_dict().items()}
        sizes = {
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "block_size": config.block_size,
        }
        nano = {"model": state, "model_args": sizes, "config": {"n_head": 1}, "iter_num": 3, "optimizer": {"state": {}}}
        for value, zipped in (
            (nano, True),
            (state, True),
            (nano, False),
            *(((odd, True) for odd in _odd_states(state)) if config is SMALL else ()),
        ):
            path = folder / "weights.pt"
            torch.save(value, path, _use_new_zipfile_serialization=zipped)
            files.append(("a.pt", path.read_bytes(), (0, 6000)))
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "weights.safetensors")
        content = (folder / "weights.safetensors").read_bytes()
        files.append(("a.safetensors", content, (0, 8 + int.from_bytes(content[:8], "little"))))
        for version, itemsize in ((3, 4), (5, 2)):
            files.append(("a.bin", _llmc(config, version, itemsize), (0, 64)))
    small = GPT(SMALL)
    tensors = {
        "model/wte": small.wte.weight.detach(),
        "model/wpe": small.wpe.weight.detach(),
        "model/ln_f/g": torch.ones(8),
        "model/ln_f/b": torch.ones(8),
    }
    for name in ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj"):
        wide = {"attn/c_attn": (8, 24), "attn/c_proj": (8, 8), "mlp/c_fc": (8, 32), "mlp/c_proj": (32, 8)}[name]
        tensors |= {f"model/h0/{name}/w": torch.ones(1, *wide), f"model/h0/{name}/b": torch.ones(wide[1])}
    tensors |= {f"model/h0/{name}/{leaf}": torch.ones(8) for name in ("ln_1", "ln_2") for leaf in "gb"}
    (folder / "tf").mkdir()
    write_tensorflow(tensors, folder / "tf")
    (folder / "tf/hparams.json").write_text(
        json.dumps({"n_vocab": 61, "n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 1})
    )
    small_ones = [file for file in files if len(file[1]) < 100_000]
    return {
        "files": small_ones + [file for file in files if file not in small_ones] * 9,
        "small": [file[1] for file in small_ones],
        "tf": folder / "tf",
    }


def _odd_states(state: dict[str, torch.Tensor]) -> list[Any]:
    """Tensors that are no ordinary ones, in a whole model."""
    first = next(iter(state))
    huge = torch.zeros(1).expand(2**36)
    odd = [
        huge,
        torch.zeros(1, dtype=torch.int8).expand(2**36),
        torch.zeros(1, dtype=torch.uint8).expand(2**36),
        torch.zeros(1).expand(2**20, 2**20),
        torch.zeros(3, 3).to_sparse(),
        torch.zeros(3, device="meta"),
        torch.zeros(3, dtype=torch.complex64),
        torch.tensor(float("nan")),
        torch.nn.Parameter(torch.zeros(61, 8)),
        torch.zeros(0),
        torch.zeros(61, 0),
        torch.tensor(1),
        torch.zeros(1, dtype=torch.bool).expand(2**18, 2**18),
        torch.zeros(1, dtype=torch.int64).expand(2**34),
        torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    ]
    return [
        {**state, **{rng_name: tensor}}
        for tensor in odd
        for rng_name in (first, "transformer.h.0.attn.bias", "position_ids", "x.y.weight")
    ]


def _llmc(config: GPTConfig, version: int, itemsize: int) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:8] = (
        20240326,
        version,
        config.block_size,
        config.vocab_size,
        config.n_layer,
        config.n_head,
        config.n_embd,
        config.vocab_size + 3,
    )
    width, layers = config.n_embd, config.n_layer
    count = (config.vocab_size + 3 + config.block_size) * width + layers * (12 * width * width + 13 * width) + 2 * width
    return header.tobytes() + b"\0" * (itemsize * count)


def imported(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """`gpt2 import` of a foreign file, damaged."""
    options: dict[str, Any] = {
        "n_head": rng.choice((None, None, None, None, None, None, 1, 2, 0, -1, 2**40)),
        "activation": rng.choice((None, "gelu")),
    }
    if rng.random() < 0.2:
        target = folder / "tf"
        shutil.copytree(state["tf"], target)
        spoil_folder(rng, target)
        path = target / rng.choice(("", "", "model-1000", "model-1000.index"))
    else:
        name, content, part = rng.choice(state["files"])
        if rng.random() < 0.15:
            name = rng.choice(("a.pt", "a.bin", "a.safetensors", "a", "a.ckpt", "model.index", "a.data-00000-of-00001"))
        path = folder / name
        path.write_bytes(_spoiled_weights(rng, content, part, state["small"]))
    import_model(path, **options)


def _spoiled_weights(rng: random.Random, content: bytes, part: tuple[int, int], others: list[bytes]) -> bytes:
    kind = rng.random()
    if content.startswith(b"PK") and kind < 0.5:
        return _spoiled_zip(rng, content)
    if content[8:9] == b"{" and kind < 0.5:
        return spoiled_safetensors(rng, content)
    if kind < 0.8:
        start = rng.choice((part[0], max(0, len(content) - 1500)))
        return spoiled_within(rng, content, start, min(len(content), start + part[1]))
    return spoiled(rng, content, others)


def _spoiled_zip(rng: random.Random, content: bytes) -> bytes:
    """The archive with another pickle in it, or other names, packed as torch.save packs."""
    made = io.BytesIO()
    packing = zipfile.ZIP_STORED if rng.random() < 0.95 else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(made, "w", packing) as after:
        for entry in before.infolist():
            data, name = before.read(entry), entry.filename
            if name.endswith("data.pkl") and rng.random() < 0.9:
                data = _spoiled_pickle(rng, data)
            elif rng.random() < 0.02:
                data = spoiled(rng, data[:4096])
            if rng.random() < 0.02:
                name = rng.choice(
                    (
                        "../../x",
                        "/x",
                        "archive/constants.pkl",
                        "archive/version",
                        odd_text(rng, 2).replace("\ud800", ""),
                        name + "2",
                    )
                )
            after.writestr(name.encode("utf-8", "replace").decode().replace("\0", "") or "x", data)
    return made.getvalue()


def _spoiled_pickle(rng: random.Random, data: bytes) -> bytes:
    """Numbers in a pickle become others; or bytes do."""
    if rng.random() < 0.5:
        return spoiled(rng, data)
    places = [at for at in range(len(data) - 2) if data[at] in b"KMJ"]  # BININT1, BININT2, BININT
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.choice(places)
        size = {75: 1, 77: 2, 74: 4}[data[at]]
        value = rng.choice((0, 1, 2, 3, 8, 255, 2**16 - 1, 2**31 - 1, -1))
        data = data[: at + 1] + (value % 2 ** (8 * size)).to_bytes(size, "little") + data[at + 1 + size :]
    return data
