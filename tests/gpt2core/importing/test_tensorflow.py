"""Checkpoints as TensorFlow writes them (gpt-2-simple, openai/gpt-2), made here byte by byte, without TensorFlow."""

import json
from pathlib import Path

import pytest

from gpt2core.errors import UserError
from gpt2core.importing import import_model
from tests.support.foreign_models import BLOCK, HEADS, LAYERS, WIDTH, NanoGPT, assert_same_logits, spread
from tests.support.tensorflow_checkpoint import as_tensorflow, write_checkpoint


@pytest.fixture(scope="module")
def nano() -> NanoGPT:
    return spread(NanoGPT())


@pytest.fixture
def run1(nano: NanoGPT, tmp_path: Path) -> Path:
    write_checkpoint(as_tensorflow(nano), tmp_path)
    hparams = {"n_vocab": 50257, "n_ctx": BLOCK, "n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS}
    (tmp_path / "hparams.json").write_text(json.dumps(hparams))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model-1000"\n')
    return tmp_path


@pytest.mark.parametrize("name", ["", "model-1000", "model-1000.index"])
def test_gpt_2_simple(run1: Path, nano: NanoGPT, name: str) -> None:
    imported = import_model(run1 / name, activation="gelu")
    assert_same_logits(imported.model, nano)
    assert "gpt-2-simple" in imported.layout
    assert "n_head 4: from hparams.json" in imported.notes
    assert "1 tensors of the optimizer and counters left out" in imported.notes


def test_a_damaged_checkpoint_is_named(run1: Path) -> None:
    data = run1 / "model-1000.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"data-00000-of-00001 is cut off"):
        import_model(run1)
    data.unlink()
    with pytest.raises(UserError, match=r"data-00000-of-00001 is missing"):
        import_model(run1)
    index = run1 / "model-1000.index"
    content = index.read_bytes()
    for broken in (content[:100], content[:-60] + content[-48:], b"", bytes(100)):
        index.write_bytes(broken)
        with pytest.raises(UserError, match="damaged or no checkpoint|is missing|without|layers"):
            import_model(run1)
