"""Rows of a GPT on a GPU whose every further token is one CUDA graph.

A step of few rows takes a GPU less time than Python takes to launch its kernels one by one; a graph launches them all
at once. A graph reads and writes fixed addresses, so the step attends to a fixed window of tokens; a mask hides those
that do not exist yet (PyTorch's notes on CUDA graphs; pytorch-labs/gpt-fast `model.py`).

Shapes: B rows, S tokens of the window, L n_layer, H n_head, D head_dim, C n_embd, V vocab_size.
"""

import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.decoding.packed.policy import is_plain
from gpt2core.decoding.rows.cached import CachedRows
from gpt2core.kernels.graphed_call import GraphedCall
from gpt2core.kernels.head_loss import padded
from gpt2core.model import GPT, Block

if TYPE_CHECKING:
    from gpt2core.decoding.rows.fused import FusedLayers

# A capture takes about as long as a dozen plain steps.
MIN_NEW_TOKENS = 32
FIRST_WINDOW = 256  # tokens attended to; doubled, with a new graph, once it is full
MOST_FUSED_ROWS = 4  # with more, cuBLAS reads the weights once for all rows
WARM_UPS = 2  # libraries allocate their workspaces in the first runs, which must not be captured


def can_graph(model: GPT) -> bool:
    """Whether `GraphedRows` decode this model as its own modules would."""
    return model.wte.weight.device.type == "cuda" and not model.training and is_plain(model)


class GraphedRows(CachedRows):
    """`CachedRows` whose single tokens are read by a graph; on a CPU, for tests, by the same body without one."""

    model: GPT
    _step: "_Step | None" = None

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        rest = self.max_length - self.length
        started = self._step is not None or rest >= MIN_NEW_TOKENS
        if self._cache is None or tokens.shape[1] != 1 or self.room < 1 or not started:
            return super().append(tokens, mask)
        place = self._cache.length
        store = self._cache.reserve(1)
        if self._step is None or not self._step.fits(store, place):
            self._step = _Step(self.model, store, place)
        self.length += 1
        tokens = self._to_storage_order(tokens)
        if self._ids is not None:
            self._ids = torch.cat([self._ids, tokens], dim=1)
        padding = None if self._mask is None else (~self._mask).sum(-1)
        hidden, logits = self._step.read(tokens, place, padding)
        self.hidden = self._to_row_order(hidden)
        return self._to_row_order(logits)

    def append_all(self, tokens: Tensor) -> Tensor:
        return self.append(tokens)[:, None] if tokens.shape[1] == 1 else super().append_all(tokens)


class _Step:
    """Reads one more token of each row into `store` (L, 2, B, H, room, D)."""

    def __init__(self, model: GPT, store: Tensor, place: int) -> None:
        self._model, self._store = model, store
        self._fused = _fused_layers(model, store)
        self._window = store.shape[4] if self._fused is not None else FIRST_WINDOW
        while self._window <= place:
            self._window *= 2
        self._window = min(self._window, store.shape[4])
        device = store.device
        rows = store.shape[2]
        self._tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._padding = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self._numbers = torch.arange(self._window, device=device)
        self._head = padded(model.lm_head.weight.detach(), model.lm_head.weight.dtype)  # (P, C)
        self._call = GraphedCall[tuple[Tensor, Tensor]](device)

    def fits(self, store: Tensor, place: int) -> bool:
        same = store.data_ptr() == self._store.data_ptr() and store.shape == self._store.shape
        return same and place < self._window

    def read(self, tokens: Tensor, place: int, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, 1, C) and logits (B, V) fp32 after tokens (B, 1), the `place`-th of their rows."""
        self._tokens.copy_(tokens)
        self._place.fill_(place)
        if padding is not None:
            self._padding.copy_(padding[:, None])
        if self._call.can_capture and (reason := self._call.capture(self._body, self._warm_up)):
            warnings.warn(f"no CUDA graph could be made, kernels are launched one by one: {reason}", stacklevel=2)
        hidden, logits = self._call(self._body)
        return hidden.clone(), logits.clone()

    def _body(self) -> tuple[Tensor, Tensor]:
        model = self._model
        if self._fused is not None:
            x = self._fused.read(self._tokens, self._place, self._padding)
        else:
            x = self._blocks()
        hidden = model.ln_f(x)
        return hidden, F.linear(hidden[:, -1], self._head)[:, : model.config.vocab_size].float()

    def _blocks(self) -> Tensor:
        """States (B, 1, C) before ln_f, by torch's kernels."""
        model = self._model
        x = model.wte(self._tokens) + model.wpe((self._place - self._padding).clamp_min(0))  # (B, 1, C)
        seen = (self._numbers <= self._place) & (self._numbers >= self._padding)  # (B, S)
        # Added to the scores; attention would make it of `seen` anew in each layer.
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=x.device).masked_fill_(~seen, -torch.inf)[:, None, None]
        for layer, block in enumerate(model.h):
            assert isinstance(block, Block)
            x = x + self._attend(layer, block, block.ln_1(x), mask)
            x = x + block.mlp(block.ln_2(x))
        return x

    def _attend(self, layer: int, block: Block, x: Tensor, mask: Tensor) -> Tensor:
        attn, (B, _, C) = block.attn, x.shape
        qkv = attn.c_attn(x).view(B, 1, 3, attn.n_head, attn.head_dim).permute(2, 0, 3, 1, 4)  # (3, B, H, 1, D)
        kept = self._store[layer]  # (2, B, H, room, D)
        kept.index_copy_(3, self._place, qkv[1:].to(kept.dtype))
        k, v = kept[:, :, :, : self._window].unbind(0)
        y = F.scaled_dot_product_attention(qkv[0].to(kept.dtype), k, v, attn_mask=mask)  # (B, H, 1, D)
        return attn.c_proj(y.transpose(1, 2).reshape(B, 1, C))

    def _warm_up(self) -> None:
        try:
            for _ in range(WARM_UPS):
                self._body()
        except Exception as error:  # whatever Triton's compiler raises, such as for a missing C compiler
            if self._fused is None:
                raise
            self._fused = None
            warnings.warn(f"no fused kernels, torch's are used: {str(error).splitlines()[0]}", stacklevel=2)
            self._warm_up()


def _fused_layers(model: GPT, store: Tensor) -> "FusedLayers | None":
    """Where few rows are read on a GPU with Triton."""
    if store.device.type != "cuda" or store.shape[2] > MOST_FUSED_ROWS or find_spec("triton") is None:
        return None
    if model.config.head_dim & (model.config.head_dim - 1):  # Triton's blocks are powers of 2
        return None
    from gpt2core.decoding.rows.fused import FusedLayers  # imports Triton

    return FusedLayers(model, store)
