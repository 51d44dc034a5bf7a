"""Whether imported weights work: the logits are finite, and the loss on English is below that of uniform guessing.

The same loss decides what a state dict does not record: with a wrong number of heads, or a square matrix transposed, a
trained model has a higher loss.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.model import GPT, Block

ENGLISH = (
    "The old man opened the door and looked out at the rain. He had been waiting for his son since the morning, and "
    "now it was nearly dark. On the table there was some bread, a little cheese, and a bottle of water. “He will "
    "come,” he said to the dog, and the dog looked at him as if it knew better. At eight o'clock they heard a car stop "
    "in front of the house."
)
# Above this share of the uniform distribution's loss, the model is taken as untrained on such text.
KNOWS_NOTHING = 0.97
# Nats a token by which another reading of the weights must be better to be chosen. For models trained for minutes the
# readings differ by up to 0.2 by chance.
CLEAR_GAIN = 0.5
USUAL_HEAD_DIM = 64
_HEAD_DIMS = (8, 16, 24, 32, 48, 64, 80, 96, 128, 256)


@dataclass(frozen=True)
class Probe:
    loss: float
    uniform_loss: float
    tokens: int

    @property
    def knows_the_text(self) -> bool:
        return self.loss < KNOWS_NOTHING * self.uniform_loss


def probe(model: GPT, token_ids: list[int]) -> Probe:
    """Loss on the tokens that fit into block_size. Raises UserError where it is not finite."""
    ids = torch.tensor([token_ids[: model.config.block_size + 1]])
    if ids.shape[1] < 2:
        raise UserError("the text to try the model on must have at least two tokens; give a longer one (--text).")
    loss = _loss(model, ids)
    if not math.isfinite(loss):
        raise UserError("the model gives logits that are not finite numbers: the weights are damaged or misread.")
    return Probe(loss, math.log(model.config.vocab_size), ids.shape[1] - 1)


def choose_heads_and_orientation(
    model: GPT, token_ids: list[int], *, given_heads: int | None, may_transpose: bool
) -> list[str]:
    """Choose the number of heads and the matrices' orientation by a clearly lower loss; returns notes on the choice.

    Tried are all usual numbers of heads and, with `may_transpose`, the attention's square matrices transposed. A given
    number of heads is kept. Raises UserError where neither trying nor GPT-2's head size tells the number.
    """
    width, uniform = model.config.n_embd, math.log(model.config.vocab_size)
    usual = given_heads or (width // USUAL_HEAD_DIM if width % USUAL_HEAD_DIM == 0 else None)
    losses = _losses(model, token_ids, usual, may_transpose)
    best, *others = sorted(losses, key=losses.__getitem__)
    default = (usual, False) if usual is not None else (others or [best])[0]
    clear = best != default and losses[best] < min(KNOWS_NOTHING * uniform, losses[default] - CLEAR_GAIN)
    if clear and given_heads is not None and best[0] != given_heads:
        set_heads(model, given_heads)
        found, other = losses[best], losses[default]
        return [
            f"look at --n-head {given_heads} again: the text is likelier with {best[0]} ({found:.2f}, not {other:.2f})"
        ]
    heads, transposed = best if clear else (usual, False)
    if heads is None:
        raise UserError(
            f"the number of heads is not in the file, n_embd ({width}) is no multiple of GPT-2's head size, "
            f"{USUAL_HEAD_DIM}, and trying did not tell; give --n-head."
        )
    set_heads(model, heads)
    notes = []
    if given_heads is None:
        assumed = f"assumed, by GPT-2's head size of {USUAL_HEAD_DIM}; if it had another number, give --n-head"
        how = "the text is likeliest with it (--n-head overrules)" if clear else assumed
        notes.append(f"n_head {heads}: not in the file; {how}")
    if transposed:
        transpose_attention(model)
        as_it_lay = losses[heads, False]
        notes.append(
            "the attention's square matrices lie the other way round than the rest: the text is likelier so "
            f"(loss {losses[best]:.2f}, not {as_it_lay:.2f})"
        )
    return notes


def _losses(model: GPT, token_ids: list[int], usual: int | None, may_transpose: bool) -> dict[tuple[int, bool], float]:
    """(number of heads, whether the attention's square matrices are transposed) -> loss."""
    width = model.config.n_embd
    numbers = {width // head_dim for head_dim in (*_HEAD_DIMS, width) if width % head_dim == 0} | ({usual} - {None})
    losses = {}
    for transposed in (False, True) if may_transpose else (False,):
        if transposed:
            transpose_attention(model)
        for heads in sorted(number for number in numbers if number is not None):
            set_heads(model, heads)
            losses[heads, transposed] = probe(model, token_ids).loss
    if may_transpose:
        transpose_attention(model)
    return losses


@torch.no_grad()
def transpose_attention(model: GPT) -> None:
    """Transpose the query, key, value and output matrices of each block; its own inverse."""
    for block in model.h:
        assert isinstance(block, Block)
        for weight in (*block.attn.c_attn.weight.chunk(3), block.attn.c_proj.weight):
            weight.copy_(weight.t().clone())


def set_heads(model: GPT, n_head: int) -> None:
    """Change the number of heads in place."""
    model.config = replace(model.config, n_head=n_head)
    for block in model.h:
        assert isinstance(block, Block)
        block.attn.n_head, block.attn.head_dim = n_head, model.config.head_dim


@torch.no_grad()
def _loss(model: GPT, ids: Tensor) -> float:
    return float(model(ids[:, :-1], ids[:, 1:]))
