"""A frozen copy of a GPT for decoding on a CPU: packed weights, few operators a layer.

Shapes: B batch, T new tokens, S tokens so far, C n_embd, H n_head, D head_dim, V vocab_size.
"""

from copy import copy
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.decoding.packed.embedding import CentredEmbedding, DraftEmbedding, Embedding, FP32Embedding
from gpt2core.decoding.packed.int4 import Int4Linear, has_int4
from gpt2core.decoding.packed.linear import (
    IntegerLinear,
    Linear,
    OneDNNLinear,
    OneDNNLinearBF16,
    Weights,
    packed_linear,
    unpacked_weight,
)
from gpt2core.decoding.packed.normed import LinearAfterNorm, Norm, NormedLinear, after_norm
from gpt2core.decoding.rows.kv_cache import KVCache
from gpt2core.errors import UserError
from gpt2core.model import GPT, Block

WEIGHTS = ("fp32", "bf16", "int8")


class _Layer(NamedTuple):
    c_attn: NormedLinear
    attn_proj: Linear
    c_fc: NormedLinear
    mlp_proj: Linear

    def four_bit(self) -> "_Layer":
        return _Layer(
            _four_bit_after_norm(self.c_attn),
            Int4Linear(*unpacked_weight(self.attn_proj)),
            _four_bit_after_norm(self.c_fc),
            Int4Linear(*unpacked_weight(self.mlp_proj)),
        )


class PackedGPT:
    """A GPT to decode with, not to train: pass it to `generate` in the GPT's place.

    `weights` is the storage type: "fp32" (within rounding of the GPT), "bf16" or "int8" (one scale an output
    row). Sums, the residual stream, keys, values and attention are fp32 in each. "fp32" shares `wte`, `wpe`, biases
    and layer norms with the model, and takes as much memory again for the packed matrices; "bf16" and "int8" need
    nothing of the model afterwards. Pack again after the model was trained.
    Raises UserError for a model that is not on a CPU, or an unknown kind of weights.
    """

    def __init__(self, model: GPT, weights: str = "fp32") -> None:
        if weights not in WEIGHTS:
            raise UserError(f"weights ({weights!r}) must be one of {', '.join(WEIGHTS)}.")
        kind = cast(Weights, weights)
        if model.wte.weight.device.type != "cpu":
            raise UserError(f"PackedGPT is for a CPU; this model is on {model.wte.weight.device}: use it as it is.")
        self.config, self.weights = model.config, kind
        self._approximate = model.config.gelu_approximation
        with torch.no_grad():
            self._wpe = model.wpe.weight.detach().float()
            self._ln_f = _norm(model.ln_f)
            self._layers = [_layer(cast(Block, block), kind) for block in model.h]
            exact = FP32Embedding(model) if kind == "fp32" else CentredEmbedding(model, kind)
        self._exact: FP32Embedding | CentredEmbedding = exact
        self._embedding: Embedding = exact
        self._draft: PackedGPT | None = None

    @property
    def checks_drafts_fast(self) -> bool:
        """Whether a forward pass of some tokens takes little longer than of one, so that drafts are cheap to check."""
        return isinstance(self._layers[0].attn_proj, OneDNNLinear | OneDNNLinearBF16 | IntegerLinear)

    @property
    def can_draft(self) -> bool:
        """Whether `draft` works here: for fp32 and bf16 in oneDNN's layout, where 4-bit weights are multiplied fast."""
        packed = isinstance(self._layers[0].attn_proj, OneDNNLinear | OneDNNLinearBF16)
        return packed and has_int4(self.config.n_embd, self.config.feed_forward_width)

    def draft(self) -> "PackedGPT":
        """The 4-bit copy that drafts for this model, on the same KVCache; made at the first call."""
        if self._draft is None:
            draft = copy(self)
            draft._layers = [layer.four_bit() for layer in self._layers]
            draft._embedding = DraftEmbedding(self._exact)
            self._draft = draft  # assigned last: other threads may read it
        return self._draft

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Logits (B, T, V) fp32 for token_ids (B, T) int64."""
        return self.lm_head(self.hidden_states(token_ids))

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) fp32 for final hidden states (..., C)."""
        return self._embedding.logits(hidden.flatten(0, -2)).unflatten(0, hidden.shape[:-1])

    def hidden_states(
        self, token_ids: Tensor, attention_mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Final hidden states (B, T, C) fp32, as `GPT.hidden_states`."""
        T = token_ids.shape[1]
        seen = cache.length if cache is not None else 0
        if seen + T > self.config.block_size:
            raise UserError(
                f"{seen + T} tokens do not fit into the model's block_size ({self.config.block_size}); "
                "use a shorter prompt or generate fewer tokens."
            )
        mask, causal = None, T > 1
        positions = self._wpe[seen : seen + T]  # (T, C)
        if attention_mask is not None:
            positions = self._wpe[(attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -T:]]  # (B, T, C)
            mask, causal = _attention_mask(attention_mask, T), False
        elif seen and causal:
            mask, causal = torch.ones(T, seen + T, dtype=torch.bool).tril(seen), False
        return self._read(self._embedding.look_up(token_ids) + positions, mask, causal, cache)

    def branch_states(self, token_ids: Tensor, positions: Tensor, seen: Tensor, cache: KVCache) -> Tensor:
        """Final hidden states (B, T, C) fp32 of token_ids (B, T) that stand side by side at positions (B, 1).

        `seen` (B, T, S) bool: which of the S tokens, those in the cache and then these, each looks at; itself at least.
        """
        hidden = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None]  # added to the scores of each head
        return self._read(self._embedding.look_up(token_ids) + self._wpe[positions], hidden, False, cache)

    def _read(self, x: Tensor, mask: Tensor | None, causal: bool, cache: KVCache | None) -> Tensor:
        """Final hidden states (B, T, C) of embedded tokens x (B, T, C), whose keys and values go into the cache."""
        B, T, C = x.shape
        H, D = self.config.n_head, self.config.head_dim
        x = x.view(B * T, C)
        rooms = cache.extend_all(T) if cache is not None else None
        for i, layer in enumerate(self._layers):
            qkv = layer.c_attn(x).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
            if rooms is None:
                k, v = qkv[1], qkv[2]
            else:
                new, k, v = rooms[i]
                new.copy_(qkv[1:])
            y = F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=mask, is_causal=causal)
            x = layer.attn_proj.add_to(x, y.transpose(1, 2).reshape(B * T, -1))
            x = layer.mlp_proj.add_to(x, layer.c_fc.gelu(x, self._approximate))
        return self._ln_f(x).view(B, T, -1)


def _layer(block: Block, weights: Weights) -> _Layer:
    attn, mlp = block.attn, block.mlp
    c_attn, attn_proj, c_fc, mlp_proj = (
        packed_linear(linear.weight.detach(), None if linear.bias is None else linear.bias.detach(), weights)
        for linear in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)
    )
    after_1, after_2 = after_norm(_norm(block.ln_1), c_attn), after_norm(_norm(block.ln_2), c_fc)
    return _Layer(after_1, attn_proj, after_2, mlp_proj)


def _norm(norm: torch.nn.LayerNorm) -> Norm:
    return Norm(norm.weight.detach().float(), norm.bias.detach().float(), norm.eps)


def _four_bit_after_norm(normed: NormedLinear) -> LinearAfterNorm:
    assert isinstance(normed, LinearAfterNorm)
    return LinearAfterNorm(normed.norm, Int4Linear(*unpacked_weight(normed.linear)))


def _attention_mask(attention_mask: Tensor, T: int) -> Tensor:
    """(B, 1, T, S) bool, True where one of the last T of S tokens may look; attention_mask (B, S) is 0 at padding."""
    S = attention_mask.shape[1]
    mask = attention_mask[:, None, None, :].bool()
    if T == 1:
        return mask  # the newest token is never padding, so it sees itself
    causal = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    # A padding row sees itself, else its softmax has no term and is NaN.
    return mask & causal | torch.eye(T, S, dtype=torch.bool).roll(S - T, dims=1)
