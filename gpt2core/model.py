"""GPT-2 decoder (Radford et al. 2019). Parameter names follow the released weights.

Shapes: B batch, T tokens, S tokens in the cache and the input together, C n_embd, H n_head, D head_dim, V vocab_size.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError
from gpt2core.kernels.attention import short_attention, short_attention_is_faster
from gpt2core.kernels.compiled import compiled_block, compiled_head_loss
from gpt2core.kernels.dropout import Dropout
from gpt2core.kernels.head_loss import head_loss, head_loss_is_faster, padded_head_loss
from gpt2core.storage.hf import find_weights, load_state, read_model, write_model

HeadLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (N, C), head (V, C), targets (N,) -> mean loss


class Cache(Protocol):
    """Keys and values of the tokens so far, layer by layer."""

    @property
    def length(self) -> int:
        """Tokens that the cache holds."""

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new k, v (B, H, T, D) of a layer; returns those of all tokens, (B, H, S, D)."""


class SelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.n_embd, self.head_dim = config.n_head, config.n_embd, config.head_dim
        self.layer = layer
        self.drop_rate, self.own_kernels = config.drop_rate, True
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.drop_rate)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(self.n_embd, dim=-1)  # each (B, T, C)
        q = q.view(B, T, self.n_head, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = k.view(B, T, self.n_head, self.head_dim).transpose(1, 2)
        v = v.view(B, T, self.n_head, self.head_dim).transpose(1, 2)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, H, S, D)
        dropout = self.drop_rate if self.training else 0.0
        if mask is None and self.own_kernels and short_attention_is_faster(q, dropout):
            y = short_attention(q, k, v, dropout)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class FeedForward(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.feed_forward_width)
        # GPT-2 was trained with the tanh approximation; exact GELU breaks parity with its weights.
        self.act = nn.GELU(approximate=config.gelu_approximation)
        self.c_proj = nn.Linear(config.feed_forward_width, config.n_embd)
        self.dropout = Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = SelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The language model. Its head is the token embedding itself (`lm_head.weight is wte.weight`), unless untied."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing, self.own_kernels = False, True
        self.compiled = False  # in training: blocks and head's loss by torch.compile
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = Dropout(config.drop_rate)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.wte.weight
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """N(0, 0.02), residual projections scaled by 1/sqrt(2 n_layer): openai/gpt-2 `src/model.py` and paper, 2.3."""
        if isinstance(module, nn.Linear):
            if module.weight is not self.wte.weight:
                nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, Block):
            for projection in (module.attn.c_proj, module.mlp.c_proj):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def forward(
        self,
        token_ids: Tensor,
        targets: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        masked: bool = False,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) for token_ids (B, T) int64; with targets (B, T) the mean loss in nats instead, a scalar.

        `attention_mask` (B, S) is 0 at left padding. With a `cache`, token_ids are the tokens after those it holds.
        `masked`: targets are negative where a token has no loss; the mean is over the others, 0 where there is none.
        `segments` (B, T) int64: which text of its row a token belongs to; each is read as if it stood alone.
        Raises UserError when the tokens do not fit into block_size.
        """
        x = self.hidden_states(token_ids, attention_mask, cache, segments)  # (B, T, C)
        if targets is None:
            return self.lm_head(x)  # (B, T, V)
        loss = self._head_loss(x, masked)
        if masked:
            return _masked_loss(loss, x.flatten(0, 1), self.lm_head.weight, targets.flatten())
        return loss(x.flatten(0, 1), self.lm_head.weight, targets.flatten())

    def _head_loss(self, x: Tensor, masked: bool) -> HeadLoss:
        """The fastest kind of head and loss for x (B, T, C)."""
        if self.own_kernels and head_loss_is_faster(x):
            return head_loss
        # A compiled loss is one for a number of rows, and masked batches have another each.
        return compiled_head_loss() if self.compiled and self.training and not masked else padded_head_loss

    def hidden_states(
        self,
        token_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, C), after ln_f. `segments` go without a mask and a cache."""
        T = token_ids.shape[1]
        seen = cache.length if cache is not None else 0
        if seen + T > self.config.block_size:
            raise UserError(
                f"{seen + T} tokens do not fit into the model's block_size ({self.config.block_size}); "
                "use a shorter prompt or generate fewer tokens."
            )
        positions = torch.arange(seen, seen + T, device=token_ids.device)  # (T,)
        mask = None
        if attention_mask is not None:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -T:]  # (B, T)
            mask = _causal_mask(T, seen + T, token_ids.device) & attention_mask[:, None, None, :].bool()
            # A padding row sees itself, else its softmax has no term and is NaN.
            mask = mask | torch.eye(T, seen + T, dtype=torch.bool, device=mask.device).roll(seen, dims=1)
        elif segments is not None:
            positions = _positions_in(segments)  # (B, T)
            mask = _causal_mask(T, T, token_ids.device) & (segments[:, None, :, None] == segments[:, None, None, :])
        elif seen:
            mask = _causal_mask(T, seen + T, token_ids.device)
        x = self.drop(self.wte(token_ids) + self.wpe(positions))
        in_training = self.training and cache is None
        run = compiled_block() if self.compiled and in_training else Block.__call__
        for block in self.h:
            if self.gradient_checkpointing and in_training:
                x = checkpoint(run, block, x, mask, use_reentrant=False)
            else:
                x = run(block, x, mask, cache)
        return self.ln_f(x)

    def set_drop_rate(self, drop_rate: float) -> None:
        """Change the dropout rate of every layer."""
        self.config = replace(self.config, drop_rate=drop_rate)
        for module in self.modules():
            if isinstance(module, (Dropout, SelfAttention)):
                module.drop_rate = drop_rate

    def use_own_kernels(self, enabled: bool) -> None:
        """Whether a training step on a CPU uses this package's head, attention and dropout kernels, or torch's."""
        for module in self.modules():
            if isinstance(module, (GPT, Dropout, SelfAttention)):
                module.own_kernels = enabled

    def num_parameters(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path) -> "GPT":
        """Weights of a released size by name, or of a directory in the Hugging Face layout, as fp32 in eval mode.

        Raises UserError where they cannot be found or fetched, or have another architecture.
        """
        directory = find_weights(name_or_directory)
        config, tensors = read_model(directory)
        model = cls(config)
        load_state(model, config, tensors, directory)
        return model.eval()

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write `config.json`, `generation_config.json` and `model.safetensors` as `transformers` reads them."""
        write_model(self.config, dict(self.named_parameters()), Path(directory), dtype)


def _masked_loss(loss: HeadLoss, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """`loss` of the rows of x (N, C) whose target is not negative: the head, the largest matrix, sees no other."""
    kept = targets >= 0
    if not kept.any():  # zero with the gradients that other ranks wait for
        return loss(x[:1], weight, torch.zeros_like(targets[:1])) * 0.0
    return loss(x[kept], weight, targets[kept])


def _positions_in(segments: Tensor) -> Tensor:
    """Each token's place in its segment, (B, T); a segment is a run of equal numbers."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def _causal_mask(T: int, S: int, device: torch.device) -> Tensor:
    """(T, S), True where one of the last T of S tokens may look."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)
