"""Weights of other programs give, once imported, the logits that those programs give."""

from pathlib import Path

import pytest
import torch
from torch import nn

from gpt2core.errors import UserError
from gpt2core.importing import import_model
from gpt2core.importing.probing import ENGLISH
from gpt2core.tokenizer import Tokenizer
from tests.support.foreign_models import (
    BLOCK,
    HEADS,
    BookGPT,
    HandMadeGPT,
    NanoGPT,
    OldMinGPT,
    assert_same_logits,
    saved,
    spread,
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_nanogpt_checkpoint(bias: bool, tied: bool, tmp_path: Path) -> None:
    reference = spread(NanoGPT(50304, bias=bias, tied=tied))
    imported = import_model(saved(reference.checkpoint("_orig_mod."), tmp_path, "ckpt.pt"))
    assert_same_logits(imported.model, reference)
    assert imported.layout.startswith("a nanoGPT checkpoint")
    assert imported.model.config.n_head == HEADS
    assert imported.model.config.drop_rate == 0.0
    assert imported.model.config.tie_word_embeddings is tied
    assert imported.model.config.qkv_bias is bias
    notes = " ".join(imported.notes)
    assert "the 47 rows after GPT-2's 50,257 are left out" in notes
    assert ("no bias anywhere" in notes) is not bias
    assert "exact GELU" in notes


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_separate_projections_of_the_book(qkv_bias: bool, tmp_path: Path) -> None:
    reference = spread(BookGPT(qkv_bias))
    state = {"model_state_dict": reference.state_dict(), "optimizer_state_dict": {}, "epoch": 3, "loss": 0.0941}
    imported = import_model(saved(state, tmp_path, "gpt2_best_model.pt"), n_head=HEADS)
    assert_same_logits(imported.model, reference)
    assert "LLMs-from-scratch" in imported.layout
    assert "model_state_dict" in imported.notes[0]
    assert any(note.startswith("head: its own") for note in imported.notes)


def test_minGPT_of_2020(tmp_path: Path) -> None:  # noqa: N802
    reference = spread(OldMinGPT())
    imported = import_model(saved(reference.state_dict(), tmp_path), n_head=HEADS)
    assert_same_logits(imported.model, reference)
    assert "minGPT of 2020" in imported.layout


@pytest.mark.parametrize("wrapper", ["", "model.", "module.", "module._orig_mod.", "model.gpt."])
def test_a_hand_made_model_behind_any_wrapper(wrapper: str, tmp_path: Path) -> None:
    reference = spread(HandMadeGPT())
    state = {wrapper + name: tensor for name, tensor in reference.state_dict().items()}
    value = {"state_dict": state, "pytorch-lightning_version": "2.1", "epoch": 1} if wrapper == "model." else state
    imported = import_model(saved(value, tmp_path, "trained_model.pth"), n_head=HEADS)
    assert_same_logits(imported.model, reference)
    assert imported.layout.endswith("with names of its own")
    assert "cannot be seen in weights" in imported.notes[-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_weights_become_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    reference = spread(NanoGPT()).to(dtype)
    imported = import_model(saved(reference.state_dict(), tmp_path), n_head=HEADS, activation="gelu")
    assert {parameter.dtype for parameter in imported.model.parameters()} == {torch.float32}
    assert_same_logits(imported.model, reference.float())


def test_conv1d_matrices_in_a_state_dict_are_told_by_their_shapes(tmp_path: Path) -> None:
    reference = spread(NanoGPT())
    state = {k: v.t().contiguous() if ".c_" in k and v.ndim == 2 else v for k, v in reference.state_dict().items()}
    imported = import_model(saved(state, tmp_path), n_head=HEADS, activation="gelu")
    assert_same_logits(imported.model, reference)
    assert any("Conv1D" in note for note in imported.notes)


@pytest.fixture(scope="module")
def trained() -> HandMadeGPT:
    """Has learned the English paragraph of the probe, so that a wrong reading of its weights shows."""
    torch.manual_seed(0)
    model = HandMadeGPT()
    ids = torch.tensor([Tokenizer().encode(ENGLISH)[: BLOCK + 1]])
    nn.init.normal_(model.token_embedding.weight, std=0.1)
    nn.init.normal_(model.position_embedding.weight, std=0.02)  # else positions alone learn the text
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1
    return model.eval()


def test_the_number_of_heads_is_found_by_trying(trained: HandMadeGPT, tmp_path: Path) -> None:
    imported = import_model(saved(trained.state_dict(), tmp_path))
    assert imported.model.config.n_head == HEADS
    assert imported.probe.knows_the_text
    assert any(note.startswith("n_head 4: not in the file; the text is likeliest with it") for note in imported.notes)
    assert_same_logits(imported.model, trained)


def test_a_wrong_number_of_heads_is_noticed(trained: HandMadeGPT, tmp_path: Path) -> None:
    imported = import_model(saved(trained.state_dict(), tmp_path), n_head=1)
    assert imported.model.config.n_head == 1
    assert any("look at --n-head 1 again: the text is likelier with 4" in note for note in imported.notes)


def test_attention_stored_the_other_way_round_is_found_by_trying(trained: HandMadeGPT, tmp_path: Path) -> None:
    square = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight")
    state = {k: v.t().contiguous() if k.endswith(square) else v for k, v in trained.state_dict().items()}
    imported = import_model(saved(state, tmp_path), n_head=HEADS)
    assert_same_logits(imported.model, trained)
    assert any("the other way round" in note for note in imported.notes)


def test_an_untrained_model_is_said_to_know_nothing(tmp_path: Path) -> None:
    imported = import_model(saved(spread(HandMadeGPT()).state_dict(), tmp_path), n_head=HEADS)
    assert not imported.probe.knows_the_text


def test_heads_that_nothing_tells_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --n-head"):
        import_model(saved(spread(HandMadeGPT()).state_dict(), tmp_path))
