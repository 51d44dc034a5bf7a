"""A frozen copy of a GPT for decoding on a CPU: packed weights, few operators a layer.

Shapes: B batch, T new tokens, S tokens so far, C n_embd, H n_head, D head_dim, V vocab_size.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.decoding.kv_cache import KVCache
from gpt2core.decoding.packed_linear import Int8Linear, Linear, Weights, packed_linear
from gpt2core.errors import UserError
from gpt2core.model import GPT, Block

WEIGHTS = ("fp32", "bf16", "int8")


class _Layer(NamedTuple):
    ln_1: tuple[Tensor, Tensor]
    c_attn: Linear
    attn_proj: Linear
    ln_2: tuple[Tensor, Tensor]
    c_fc: Linear
    mlp_proj: Linear


class PackedGPT:
    """A GPT to decode with, not to train: pass it to `generate` in the GPT's place.

    `weights` is what is read each step: "fp32" (within rounding of the GPT), "bf16" or "int8" (one scale an output
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
        self._eps = model.config.layer_norm_epsilon
        self._approximate = model.config.gelu_approximation
        with torch.no_grad():
            self._wpe = model.wpe.weight.detach().float()
            self._ln_f = _norm(model.ln_f)
            self._layers = [_layer(cast(Block, block), kind) for block in model.h]
            self._embedding = _FP32Embedding(model) if kind == "fp32" else _CentredEmbedding(model, kind)

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
        B, T = token_ids.shape
        H, D = self.config.n_head, self.config.head_dim
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
        x = (self._embedding.look_up(token_ids) + positions).view(B * T, -1)
        rooms = cache.extend_all(T) if cache is not None else None
        for i, layer in enumerate(self._layers):
            qkv = layer.c_attn(self._normalise(x, layer.ln_1)).view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
            if rooms is None:
                k, v = qkv[1], qkv[2]
            else:
                new, k, v = rooms[i]
                new.copy_(qkv[1:])
            y = F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=mask, is_causal=causal)
            x = layer.attn_proj.add_to(x, y.transpose(1, 2).reshape(B * T, -1))
            x = layer.mlp_proj.add_to(x, layer.c_fc.gelu(self._normalise(x, layer.ln_2), self._approximate))
        return self._normalise(x, self._ln_f).view(B, T, -1)

    def _normalise(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return torch.layer_norm(x, norm[0].shape, norm[0], norm[1], self._eps)


class _FP32Embedding:
    """`wte` row by row for looking up, shared with the model, and the packed head."""

    def __init__(self, model: GPT) -> None:
        self._wte = model.wte.weight.detach().float()
        self.logits: Linear = packed_linear(model.lm_head.weight.detach().float(), None, "fp32")

    def look_up(self, token_ids: Tensor) -> Tensor:
        return self._wte[token_ids]


class _CentredEmbedding:
    """`wte` and the head in bf16 or int8, less the head's mean row.

    All rows of a trained head share a part that moves every logit by the same large amount; bf16 logits would be
    coarse by it. That part is computed in fp32 instead, and the rest is small.
    """

    def __init__(self, model: GPT, weights: Weights) -> None:
        head = model.lm_head.weight.detach().float()
        self._mean = head.mean(dim=0)  # (C,)
        self._head = packed_linear(head - self._mean, None, weights)
        # int8 rows are kept as they are: one table serves both ends of a tied model.
        shared = isinstance(self._head, Int8Linear) and model.config.tie_word_embeddings
        self._wte = None if shared else model.wte.weight.detach().float().to(torch.bfloat16)

    def look_up(self, token_ids: Tensor) -> Tensor:
        if self._wte is not None:
            return self._wte[token_ids].float()
        assert isinstance(self._head, Int8Linear)
        scale = self._head.scale[token_ids].float()[..., None]
        return self._head.weight[token_ids] * scale + self._mean

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden) + (hidden @ self._mean)[:, None]


def _layer(block: Block, weights: Weights) -> _Layer:
    attn, mlp = block.attn, block.mlp
    c_attn, attn_proj, c_fc, mlp_proj = (
        packed_linear(linear.weight.detach(), None if linear.bias is None else linear.bias.detach(), weights)
        for linear in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)
    )
    return _Layer(_norm(block.ln_1), c_attn, attn_proj, _norm(block.ln_2), c_fc, mlp_proj)


def _norm(norm: torch.nn.LayerNorm) -> tuple[Tensor, Tensor]:
    return norm.weight.detach().float(), norm.bias.detach().float()


def _attention_mask(attention_mask: Tensor, T: int) -> Tensor:
    """(B, 1, T, S) bool, True where one of the last T of S tokens may look; attention_mask (B, S) is 0 at padding."""
    S = attention_mask.shape[1]
    mask = attention_mask[:, None, None, :].bool()
    if T == 1:
        return mask  # the newest token is never padding, so it sees itself
    causal = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    # A padding row sees itself, else its softmax has no term and is NaN.
    return mask & causal | torch.eye(T, S, dtype=torch.bool).roll(S - T, dims=1)
