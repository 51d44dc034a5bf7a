"""Both ends of a packed GPT: token ids to vectors, and vectors to logits.

Shapes: M vectors, C n_embd, V vocab_size.
"""

from typing import Protocol

import torch
from torch import Tensor

from gpt2core.decoding.packed.int4 import Int4Linear
from gpt2core.decoding.packed.linear import Weights, int8_linear, packed_linear, plain_weight, quantise_rows
from gpt2core.model import GPT


class Embedding(Protocol):
    def look_up(self, token_ids: Tensor) -> Tensor:
        """Rows of `wte` (..., C) fp32 for token_ids (...,)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, V) fp32 of hidden (M, C)."""


class FP32Embedding:
    """`wte` row by row for looking up, shared with the model, and the packed head."""

    def __init__(self, model: GPT) -> None:
        self._wte = model.wte.weight.detach().float()
        self._head = packed_linear(model.lm_head.weight.detach().float(), None, "fp32")
        self._tied = model.config.tie_word_embeddings

    def look_up(self, token_ids: Tensor) -> Tensor:
        return self._wte[token_ids]

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)

    def four_bit_head(self) -> tuple[Int4Linear, Tensor]:
        """The head less its mean row, and that row (C,) fp32."""
        head = self._wte if self._tied else plain_weight(self._head)[0]
        mean = head.mean(dim=0)
        return Int4Linear(head, None, less=mean), mean


class CentredEmbedding:
    """`wte` and the head in bf16 or int8, less the head's mean row.

    All rows of a trained head share a part that moves every logit by the same large amount; bf16 logits would be
    coarse by it. That part is computed in fp32 instead, and the rest is small.
    """

    def __init__(self, model: GPT, weights: Weights) -> None:
        head = model.lm_head.weight.detach().float()
        self._mean = head.mean(dim=0)  # (C,)
        self._rows: tuple[Tensor, Tensor] | None = None
        if weights == "int8" and model.config.tie_word_embeddings:  # its rows serve both ends
            self._rows = quantise_rows(head - self._mean)
            self._head = int8_linear(*self._rows, None)
            return
        self._head = packed_linear(head - self._mean, None, weights)
        self._wte = model.wte.weight.detach().float().to(torch.bfloat16)

    def look_up(self, token_ids: Tensor) -> Tensor:
        if self._rows is None:
            return self._wte[token_ids].float()
        weight, scale = self._rows
        return weight[token_ids] * scale[token_ids].float()[..., None] + self._mean

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden).add_((hidden @ self._mean)[:, None])

    def four_bit_head(self) -> tuple[Int4Linear, Tensor]:
        """The head less its mean row, and that row (C,) fp32."""
        return Int4Linear(*plain_weight(self._head)), self._mean


class DraftEmbedding:
    """The table of another embedding to look up in, and its head in 4 bits."""

    def __init__(self, exact: FP32Embedding | CentredEmbedding) -> None:
        self._exact = exact
        self._head, self._mean = exact.four_bit_head()

    def look_up(self, token_ids: Tensor) -> Tensor:
        return self._exact.look_up(token_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden).add_((hidden @ self._mean)[:, None])
