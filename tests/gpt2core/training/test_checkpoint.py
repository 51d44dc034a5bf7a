"""A checkpoint is whole or it is not taken."""

import json

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.model import GPT
from gpt2core.training.checkpoint import (
    DamagedCheckpointError,
    load_checkpoint,
    newest_valid,
    remove_older,
    save_checkpoint,
    step_directories,
)

MODEL = GPT(GPTConfig(31, 8, n_layer=1, n_head=2, n_embd=8))


def save(root, step: int) -> None:
    save_checkpoint(root / f"step-{step:08d}", MODEL, {"wte.weight/exp_avg": torch.ones(3)}, {"step": step})


def test_a_saved_checkpoint_comes_back_and_is_a_model_directory(tmp_path) -> None:
    save(tmp_path, 5)
    found, damaged = newest_valid(tmp_path)
    assert (found.state, damaged) == ({"step": 5}, [])
    assert torch.equal(found.optimizer["wte.weight/exp_avg"], torch.ones(3))
    assert torch.equal(GPT.from_pretrained(found.directory).wte.weight, MODEL.wte.weight)


def test_a_checkpoint_of_another_format_is_set_aside(tmp_path) -> None:
    save(tmp_path, 5)
    manifest = tmp_path / "step-00000005" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 0'))
    found, damaged = newest_valid(tmp_path)
    assert found is None
    assert "has format_version 0, expected 1" in damaged[0]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_a_damaged_checkpoint_is_set_aside_by_name_and_the_one_before_is_taken(tmp_path, name, damage) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    path = tmp_path / "step-00000010" / name
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    found, damaged = newest_valid(tmp_path)
    assert found.state == {"step": 5}
    assert len(damaged) == 1
    assert name in damaged[0]
    assert (tmp_path / "damaged-step-00000010").is_dir()


def test_a_save_that_fails_leaves_the_older_checkpoint_and_no_rest(tmp_path) -> None:
    save(tmp_path, 5)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "step-00000005", MODEL, {}, {"step": object()})
    assert load_checkpoint(tmp_path / "step-00000005").state == {"step": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_rename_cut_in_the_middle_is_mended(tmp_path) -> None:
    save(tmp_path, 5)
    (tmp_path / "step-00000005").rename(tmp_path / ".step-00000005.old")
    found, _ = newest_valid(tmp_path)
    assert found.state == {"step": 5}


def test_the_best_weights_cut_in_a_rename_are_mended_too(tmp_path) -> None:
    (tmp_path / ".best.old").mkdir()
    newest_valid(tmp_path)
    assert (tmp_path / "best").is_dir()


def test_only_the_last_ones_are_kept(tmp_path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step)
    remove_older(tmp_path, keep_last=2)
    assert [path.name for path in step_directories(tmp_path)] == ["step-00000015", "step-00000020"]


def test_an_unknown_directory_is_named_as_damaged(tmp_path) -> None:
    with pytest.raises(DamagedCheckpointError, match="manifest.json cannot be read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["trainer.json", "optimizer.safetensors", "model.safetensors", "config.json"])
def test_a_manifest_that_leaves_a_file_out_makes_no_whole_checkpoint(tmp_path, name: str) -> None:
    save(tmp_path, 5)
    save(tmp_path, 6)
    manifest = tmp_path / "step-00000006" / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["files"][name]
    manifest.write_text(json.dumps(values))
    (manifest.parent / name).unlink()
    found, damaged = newest_valid(tmp_path)
    assert found.state == {"step": 5}
    assert f"does not list {name}" in damaged[0]


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"format_version": ' + "9" * 5000 + "}", "[]", '{"files": []}', "\x00"]
)
def test_a_manifest_that_a_parser_stumbles_over_is_damaged(tmp_path, content: str) -> None:
    save(tmp_path, 5)
    (tmp_path / "step-00000005" / "manifest.json").write_text(content)
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(tmp_path / "step-00000005")


def test_folders_with_names_like_a_checkpoints_are_left_alone(tmp_path) -> None:
    save(tmp_path, 5)
    for name in ("step-x", "step-", "step-00000005.bak", "step--1", "step-²"):
        (tmp_path / name).mkdir()
    found, damaged = newest_valid(tmp_path, at_most=9)
    assert (found.state, damaged) == ({"step": 5}, [])
