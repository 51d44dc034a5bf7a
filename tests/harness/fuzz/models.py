"""Files of tokens and of weights: shards, checkpoints, model directories, and what other programs write."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gpt2core.config import GPTConfig
from gpt2core.data.splits import SPLITS
from gpt2core.data.tokens import open_tokens
from gpt2core.data.writer import write_tokens
from gpt2core.importing import import_model
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2core.training.checkpoint import DamagedCheckpointError, load_checkpoint, newest_valid, save_checkpoint
from tests.harness.fuzz.harness import Fault
from tests.harness.fuzz.mutate import UNHARMED, as_json, changed, spoiled, spoiled_within

FULL = GPTConfig(50257, 8, n_layer=1, n_head=1, n_embd=4)
SMALL = GPTConfig(61, 16, n_layer=2, n_head=2, n_embd=8)


def spoil_folder(rng: random.Random, folder: Path) -> list[str]:
    """One or two files of a folder cut, flipped, swapped, removed or replaced by something else; their names."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    touched = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(names)
        path = folder / name
        touched.append(name)
        kind = rng.random()
        if not path.is_file() or path.is_symlink():
            continue
        if kind < 0.5:
            path.write_bytes(spoiled(rng, path.read_bytes()))
        elif kind < 0.75 and path.suffix == ".json" and name not in touched[:-1]:
            path.write_bytes(as_json(rng, changed(rng, json.loads(path.read_bytes()))))
        elif kind < 0.85:
            other = folder / rng.choice(names)
            if other.is_file() and not other.is_symlink():  # written through, a link would spoil what it leads to
                mine, theirs = path.read_bytes(), other.read_bytes()
                path.write_bytes(theirs)
                other.write_bytes(mine)
                touched.append(other.name)
        else:
            path.unlink()
            _put_instead(rng, path)
    return touched


def _put_instead(rng: random.Random, path: Path) -> None:
    kind = rng.randrange(5)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(rng.choice(("../outside", ".", path.name, "nowhere", "/dev/zero", UNHARMED)))
    elif kind == 3:
        path.write_bytes(b"")


# Tokens


def prepare_shards(folder: Path) -> dict[str, Any]:
    fragments = [piece for number in range(30) for piece in (f"Text {number} of many words.", "<|endoftext|>")]
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    write_tokens(folder / "tokens", fragments, source="test", shares=shares, shard_tokens=60)
    return {"folder": folder / "tokens", "content": _token_content(folder / "tokens")}


def _token_content(directory: Path) -> dict[str, Any]:
    opened = open_tokens(directory)
    splits = {name: opened.split(name) for name in SPLITS}
    return {
        name: (split.read(0, len(split)).tolist(), split.document_starts.tolist()) for name, split in splits.items()
    }


def shards(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """A damaged token set: what `verify` lets pass holds the tokens that were written."""
    target = folder / "tokens"
    shutil.copytree(state["folder"], target)
    (folder / "outside").write_bytes((target / "train-00000.bin").read_bytes())
    if rng.random() < 0.5:
        spoil_folder(rng, target)
    else:
        manifest = changed(rng, json.loads((target / "manifest.json").read_bytes()))
        if rng.random() < 0.2:
            lead_out(rng, manifest)
        (target / "manifest.json").write_bytes(as_json(rng, manifest))
    opened = open_tokens(target)
    for name in SPLITS:
        split = opened.split(name)
        if len(split):
            split.read(rng.randrange(len(split)), len(split))
        if len(split.document_starts) != split.num_documents:
            raise Fault(f"{name} has {len(split.document_starts)} documents, not {split.num_documents}")
    opened.verify()
    if _token_content(target) != state["content"]:
        raise Fault("verify lets other tokens pass")


def lead_out(rng: random.Random, value: Any) -> None:
    """A manifest whose file names lead out of its folder."""
    entries = []
    stack = [value]
    while stack:
        item = stack.pop()
        stack += list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
        entries += [item] if isinstance(item, dict) and "file" in item else []
    if entries:
        rng.choice(entries)["file"] = rng.choice(
            ("../outside", UNHARMED, "/dev/zero", "../tokens/train-00000.bin", ".")
        )


# Checkpoints


def prepare_checkpoint(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model, optimizer = GPT(SMALL), {"moment": torch.arange(5.0)}
    for step in (4, 8):
        state = {
            "step": step,
            "fingerprint": {"seed": 1},
            "finished": None,
            "extra": {"run_id": "ab"},
            "history": [{"step": 1}],
        }
        save_checkpoint(folder / f"run/step-{step:08d}", model, optimizer, state)
    loaded = load_checkpoint(folder / "run/step-00000008")
    return {
        "folder": folder / "run",
        "state": loaded.state,
        "weights": (folder / "run/step-00000008/model.safetensors").read_bytes(),
    }


def checkpoint(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """A damaged newest checkpoint: the one before is taken, or what is read is what was saved."""
    run = folder / "run"
    shutil.copytree(state["folder"], run)
    (folder / "outside").write_bytes(b"secret")
    newest = run / "step-00000008"
    spoil_folder(rng, newest)
    if rng.random() < 0.1:
        newest.rename(
            run
            / rng.choice(("step-8", "step-x", "step-", ".step-00000008.old", "step-00000008.bak", "step--1", "step-²"))
        )
    if rng.random() < 0.05:
        (run / "step-00000009").mkdir()
    if rng.random() < 0.5 and newest.is_dir():
        loaded = load_checkpoint(newest)
        found = loaded.directory
    else:
        whole, _ = newest_valid(run, at_most=rng.choice((None, 100, 5)))
        if whole is None:
            raise Fault("the older checkpoint is whole, and was not taken")
        loaded, found = whole, whole.directory
    if loaded.state["step"] == 8 and loaded.state != state["state"]:
        raise Fault("another state was read than was saved")
    if loaded.optimizer["moment"].tolist() != list(range(5)):
        raise Fault("another optimizer was read than was saved")
    if (found / "model.safetensors").read_bytes() != state["weights"]:
        raise Fault("other weights were read than were saved")
    if not isinstance(GPT.from_pretrained(found), GPT):
        raise DamagedCheckpointError(str(found))


# Model directories


def prepare_directory(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    small = GPT(SMALL)
    for name, model in (("small", small), ("full", GPT(FULL))):
        model.save_pretrained(folder / name)
        weights = folder / name / "model.safetensors"
        tensors = _tensors(weights)
        shutil.copytree(folder / name, folder / f"{name}-shards")
        shutil.copytree(folder / name, folder / f"{name}-bin")
        for extra in ("shards", "bin"):
            (folder / f"{name}-{extra}" / "model.safetensors").unlink()
        torch.save(tensors, folder / f"{name}-bin" / "pytorch_model.bin")
        names = sorted(tensors)
        halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, keys in halves.items():
            save_file({key: tensors[key] for key in keys}, folder / f"{name}-shards" / file)
        index = {"metadata": {}, "weight_map": {key: file for file, keys in halves.items() for key in keys}}
        (folder / f"{name}-shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    Tokenizer().encode("warm")
    import_model(folder / "full")
    vocab = {f"t{n}": n for n in range(50257)}
    return {
        "folder": folder,
        "names": ["small", "small", "small-shards", "small-bin", "small-bin", "full", "full-shards"],
        "vocab": json.dumps(vocab),
    }


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def directory(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """A model in the Hugging Face layout, damaged; loaded, or imported."""
    target = folder / "model"
    shutil.copytree(state["folder"] / rng.choice(state["names"]), target)
    (folder / "outside").write_bytes(b"{}")
    kind = rng.random()
    config = target / "config.json"
    if kind < 0.45:
        config.write_bytes(as_json(rng, changed(rng, json.loads(config.read_bytes()))))
    elif kind < 0.65:
        path = rng.choice(sorted(target.glob("*.safetensors")) or [config])
        path.write_bytes(
            spoiled_safetensors(rng, path.read_bytes()) if path != config else spoiled(rng, path.read_bytes())
        )
    elif kind < 0.9:
        spoil_folder(rng, target)
    elif kind < 0.97:
        name = rng.choice(
            ("added_tokens.json", "tokenizer.json", "vocab.json", "model.safetensors.index.json", "adapter_config.json")
        )
        valid = {
            "model": {"vocab": {"a": 1}},
            "added_tokens": [{"content": "x", "id": 50258}],
            "weight_map": {"a": "../outside"},
        }
        (target / name).write_bytes(as_json(rng, changed(rng, valid)))
    else:
        (target / "vocab.json").write_bytes(spoiled(rng, state["vocab"].encode()))
    if rng.random() < 0.6:
        model = GPT.from_pretrained(target)
    else:
        model = import_model(target).model
    if model.config.block_size >= 2 and model.config.vocab_size >= 3:
        model(torch.tensor([[1, 2]]))


def spoiled_safetensors(rng: random.Random, content: bytes) -> bytes:
    """A header that claims something else, well-formed or not; or spoiled bytes."""
    size = int.from_bytes(content[:8], "little")
    kind = rng.random()
    if kind < 0.5:
        header = json.loads(content[8 : 8 + size])
        text = json.dumps(changed(rng, header, ("F32", "BF16", "F64", "I64", "BOOL", "U8"))).encode(
            "utf-8", "surrogatepass"
        )
        if rng.random() < 0.3:
            text = text.replace(
                b'"F32"',
                rng.choice((b'"F64"', b'"I32"', b'"BOOL"', b'"F8_E4M3"', b'"BF16"', b'"C64"')),
                rng.choice((1, -1)),
            )
        return len(text).to_bytes(8, "little") + text + content[8 + size :]
    return spoiled_within(rng, content, *rng.choice(((0, 8), (8, 8 + size), (8, 8 + size), (8 + size, len(content)))))
