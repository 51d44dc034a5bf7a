"""What is loaded comes from the folder that was named: no link in it, and no name in its files, leads out of it.

Models and token sets come from other people; what they could point to is on the user's disk.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.data.tokens import open_tokens
from gpt2core.data.writer import write_tokens
from gpt2core.errors import UserError
from gpt2core.importing import import_model
from gpt2core.model import GPT
from gpt2core.storage.files import inside, read_json, replaced_directory, write_json
from gpt2core.training.checkpoint import DamagedCheckpointError, load_checkpoint, save_checkpoint
from gpt2ops.maintenance.verify import verify_output, verify_path

MODEL = ("config.json", "model.safetensors")
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A model, a token set, a checkpoint, a folder of one file of weights, one of TensorFlow."""
    root = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = GPT(GPTConfig(50257, 16, n_layer=1, n_head=2, n_embd=8))
    model.save_pretrained(root / "model")
    write_tokens(root / "tokens", ["Many words of a text. "] * 40, source="t", shares=SHARES, split_by="tokens")
    save_checkpoint(root / "step-00000004", model, {"moment": torch.zeros(2)}, {"step": 4})
    (root / "weights").mkdir()
    state = {"model": model.state_dict(), "model_args": {"n_head": 2, "block_size": 16}}
    torch.save(state, root / "weights/model.pt")
    (root / "tensorflow").mkdir()
    for name in ("model-1.index", "model-1.data-00000-of-00001", "hparams.json"):
        (root / "tensorflow" / name).write_text("{}")
    return root


@pytest.fixture
def here(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "here"))


def read_model(root: Path) -> Any:
    return GPT.from_pretrained(root / "model")


def read_tokens(root: Path) -> Any:
    tokens = open_tokens(root / "tokens")
    tokens.verify()
    return tokens.split("train").read(0, 5), tokens.split("train").document_starts


def read_checkpoint(root: Path) -> Any:
    return load_checkpoint(root / "step-00000004")


def read_import(root: Path) -> Any:
    return import_model(root / "model")


def read_weights(root: Path) -> Any:
    return import_model(root / "weights")


def read_tensorflow(root: Path) -> Any:
    return import_model(root / "tensorflow")


def content_of(found: Any) -> Any:
    """Of what was read, to compare."""
    model = getattr(found, "model", found)
    if isinstance(model, GPT):
        return {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return [part.tolist() for part in found] if isinstance(found, tuple) else found.state


FILES: list[tuple[Callable[[Path], Any], str]] = [
    *((read_model, f"model/{name}") for name in MODEL),
    *((read_import, f"model/{name}") for name in MODEL),
    *((read_tokens, f"tokens/{name}") for name in ("manifest.json", "train-00000.bin", "train-documents.bin")),
    *(
        (read_checkpoint, f"step-00000004/{name}")
        for name in ("manifest.json", "trainer.json", "optimizer.safetensors", "config.json", "model.safetensors")
    ),
    (read_weights, "weights/model.pt"),
    *((read_tensorflow, f"tensorflow/{name}") for name in ("model-1.index", "hparams.json")),
]


@pytest.mark.parametrize(("read", "name"), FILES)
def test_a_link_out_of_the_folder_is_refused_though_what_it_leads_to_is_whole(read, name, here, made) -> None:
    for target in (made / name, Path(os.path.relpath(made / name, (here / name).parent))):
        (here / name).unlink()
        (here / name).symlink_to(target)
        with pytest.raises(UserError, match="leads out of") as error:
            read(here)
        assert str(here / name) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("read", "name"), FILES)
def test_what_is_no_file_is_refused_and_nothing_waits_for_it(read, name, here) -> None:
    """A pipe would keep its reader waiting for ever."""
    for make in (os.mkfifo, lambda path: path.symlink_to(path.name), lambda path: path.symlink_to("/dev/zero")):
        (here / name).unlink()
        make(here / name)
        with pytest.raises(UserError):
            read(here)


@pytest.mark.parametrize(("read", "name"), [item for item in FILES if item[0] is not read_tensorflow])
def test_a_link_within_the_folder_and_a_link_to_the_folder_are_followed(read, name, here, tmp_path) -> None:
    whole = content_of(read(here))
    kept = (here / name).with_name(f"kept-{Path(name).name}")
    if read in (read_weights,):
        kept = kept.with_suffix(".kept")
    (here / name).rename(kept)
    (here / name).symlink_to(kept.name)
    assert content_of(read(here)) == whole
    (tmp_path / "there").mkdir()
    for folder in here.iterdir():
        (tmp_path / "there" / folder.name).symlink_to(folder)
    assert content_of(read(tmp_path / "there")) == whole


def test_a_cache_of_contents_may_hold_the_files_of_the_hub_and_of_dvc(here, tmp_path) -> None:
    """The hub's client and `dvc config cache.type symlink` keep files so."""
    model, tokens = content_of(read_model(here)), content_of(read_tokens(here))
    hub = tmp_path / "hub/models--me--tiny"
    shutil.copytree(here / "model", hub / "blobs")
    snapshot = hub / "snapshots/0123abcd/model"
    snapshot.parent.mkdir(parents=True)
    for name in MODEL:
        (snapshot.parent / name).symlink_to(Path("../../blobs") / name)
    assert content_of(GPT.from_pretrained(snapshot.parent)) == model
    cache = tmp_path / "cache/files/md5/ab"
    cache.mkdir(parents=True)
    for number, file in enumerate([*(here / "model").iterdir(), *(here / "tokens").iterdir()]):
        shutil.move(file, cache / f"{number:030x}")
        file.symlink_to(cache / f"{number:030x}")
    assert content_of(read_model(here)) == model
    assert content_of(read_tokens(here)) == tokens


def test_a_folder_that_only_looks_like_the_hubs_cache_leads_nowhere_else(here, tmp_path, made) -> None:
    """A model that was unpacked into `~/snapshots/` must not reach all of the home."""
    evil = tmp_path / "snapshots/evil"
    shutil.copytree(here / "model", evil)
    (evil / "config.json").unlink()
    shutil.copy(made / "model/config.json", tmp_path / "private.json")
    (evil / "config.json").symlink_to("../../private.json")
    with pytest.raises(UserError, match="leads out of"):
        GPT.from_pretrained(evil)
    with pytest.raises(UserError, match="leads out of"):
        import_model(evil)


@pytest.mark.parametrize("where", ["../outside.bin", "/{root}/outside.bin", "sub/../../outside.bin"])
def test_names_in_a_manifest_or_an_index_stay_within_the_folder(where, here) -> None:
    where = where.replace("/{root}", str(here))
    shutil.copy(here / "tokens/train-00000.bin", here / "outside.bin")
    manifest = read_json(here / "tokens/manifest.json")
    manifest["splits"]["train"]["shards"][0]["file"] = where
    write_json(here / "tokens/manifest.json", manifest)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        read_tokens(here)
    shutil.move(here / "model/model.safetensors", here / "outside.bin")
    names = {name: where for name, _ in GPT(GPTConfig(50257, 16, n_layer=1, n_head=2, n_embd=8)).named_parameters()}
    write_json(here / "model/model.safetensors.index.json", {"weight_map": names})
    for read in (read_model, read_import):
        with pytest.raises(UserError, match=r"model/outside\.bin is missing"):
            read(here)
    manifest = read_json(here / "step-00000004/manifest.json")
    shutil.move(here / "step-00000004/trainer.json", here / "outside.json")
    manifest["files"]["../outside.json"] = manifest["files"].pop("trainer.json")
    write_json(here / "step-00000004/manifest.json", manifest)
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(here)


def test_a_checkpoint_whose_manifest_leaves_a_file_out_is_not_whole(here) -> None:
    for name in ("trainer.json", "optimizer.safetensors", "model.safetensors", "config.json"):
        manifest = read_json(here / "step-00000004/manifest.json")
        left = {key: value for key, value in manifest["files"].items() if key != name}
        (here / "step-00000004/manifest.json").write_text(json.dumps({**manifest, "files": left}))
        with pytest.raises(DamagedCheckpointError, match=f"does not list {name}"):
            read_checkpoint(here)
        (here / "step-00000004/manifest.json").write_text(json.dumps(manifest))
    assert np.array_equal(read_checkpoint(here).optimizer["moment"].numpy(), np.zeros(2))


def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(ValueError, match="a pipe or a device"):
        read_json(tmp_path / "manifest.json")
    with pytest.raises(UserError, match="it has no recorded hashes"):
        verify_path(tmp_path, tmp_path)
    output = {"path": "manifest.json", "md5": "0" * 32}
    assert verify_output(tmp_path, output).damage == (
        f"{tmp_path / 'manifest.json'} is a pipe or a device, not a file",
    )


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no name that a file can have"):
        inside(tmp_path / "a\0b", tmp_path)


def test_what_is_written_takes_the_place_of_a_link_and_never_goes_through_it(tmp_path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("the only copy")
    (tmp_path / "plots").symlink_to(outside)
    (tmp_path / ".plots.partial").symlink_to(outside)
    (tmp_path / ".plots.old").symlink_to(outside)
    for content in ("one", "two"):
        with replaced_directory(tmp_path / "plots") as folder:
            (folder / "loss.png").write_text(content)
        assert (tmp_path / "plots/loss.png").read_text() == content
    (tmp_path / "plots/note.json").symlink_to(outside / "mine.txt")
    write_json(tmp_path / "plots/note.json", {"new": True})
    assert not (tmp_path / "plots").is_symlink()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"mine.txt": "the only copy"}
