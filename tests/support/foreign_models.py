"""GPT-2s as other programs write them: their names, their order of tensors, and their own arithmetic.

Written from each program's published description, to check the import against; no model uses this project's code.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2core.model import GPT

VOCAB = 50257
WIDTH, HEADS, LAYERS, BLOCK = 32, 4, 2, 24
IDS = torch.randint(VOCAB, (2, BLOCK), generator=torch.Generator().manual_seed(1))


def spread(model: nn.Module, seed: int = 0) -> Any:
    """Random weights that all matter: biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return model.eval()


def saved(value: Any, folder: Path, name: str = "model.pth") -> Path:
    torch.save(value, folder / name)
    return folder / name


def assert_same_logits(model: GPT, reference: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), reference(IDS)[..., :VOCAB], atol=1e-5, rtol=0)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Causal attention written out; q, k, v are (B, T, C)."""
    B, T, C = q.shape
    q, k, v = (x.view(B, T, heads, C // heads).permute(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(C // heads)
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(B, T, C)


class NoBiasNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-5)


class NanoGPT(nn.Module):
    """karpathy/nanoGPT: one fused nn.Linear for q, k, v; exact GELU; a tied head; bias switched on or off."""

    def __init__(self, vocab: int = VOCAB, bias: bool = True, tied: bool = True) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return nn.LayerNorm(WIDTH) if bias else NoBiasNorm(WIDTH)

        def block() -> nn.ModuleDict:
            attn = {"c_attn": nn.Linear(WIDTH, 3 * WIDTH, bias=bias), "c_proj": nn.Linear(WIDTH, WIDTH, bias=bias)}
            mlp = {"c_fc": nn.Linear(WIDTH, 4 * WIDTH, bias=bias), "c_proj": nn.Linear(4 * WIDTH, WIDTH, bias=bias)}
            parts = {"ln_1": norm(), "attn": nn.ModuleDict(attn), "ln_2": norm(), "mlp": nn.ModuleDict(mlp)}
            return nn.ModuleDict(parts)

        parts = {"wte": nn.Embedding(vocab, WIDTH), "wpe": nn.Embedding(BLOCK, WIDTH)}
        layers = nn.ModuleList(block() for _ in range(LAYERS))
        self.transformer = nn.ModuleDict({**parts, "h": layers, "ln_f": norm()})
        self.lm_head = nn.Linear(WIDTH, vocab, bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight
        args = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": BLOCK, "bias": bias}
        self.args = {**args, "vocab_size": vocab, "dropout": 0.0}

    def forward(self, ids: Tensor) -> Tensor:
        t: Any = self.transformer
        x = t["wte"](ids) + t["wpe"](torch.arange(ids.shape[1]))
        for block in t["h"]:
            q, k, v = block["attn"]["c_attn"](block["ln_1"](x)).split(WIDTH, dim=2)
            x = x + block["attn"]["c_proj"](attend(q, k, v, HEADS))
            x = x + block["mlp"]["c_proj"](F.gelu(block["mlp"]["c_fc"](block["ln_2"](x))))
        return self.lm_head(t["ln_f"](x))

    def checkpoint(self, prefix: str = "") -> dict[str, Any]:
        state = {prefix + name: tensor for name, tensor in self.state_dict().items()}
        return {
            "model": state,
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
            "model_args": self.args,
            "iter_num": 10,
            "best_val_loss": torch.tensor(3.5),
            "config": {"n_head": HEADS},
        }


class BookNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return self.scale * centred / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5) + self.shift


class BookAttention(nn.Module):
    def __init__(self, qkv_bias: bool) -> None:
        super().__init__()
        self.W_query, self.W_key, self.W_value = (nn.Linear(WIDTH, WIDTH, bias=qkv_bias) for _ in range(3))
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mask", torch.triu(torch.ones(BLOCK, BLOCK), diagonal=1))


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.Identity(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        return self.layers[2](0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


class BookBlock(nn.Module):
    def __init__(self, qkv_bias: bool) -> None:
        super().__init__()
        self.att, self.ff = BookAttention(qkv_bias), FeedForward()
        self.norm1, self.norm2 = BookNorm(WIDTH), BookNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        att = self.att
        x = x + att.out_proj(attend(att.W_query(y), att.W_key(y), att.W_value(y), HEADS))
        return x + self.ff(self.norm2(x))


class BookGPT(nn.Module):
    """rasbt/LLMs-from-scratch: separate q, k, v, norms with scale and shift, an untied head, tanh GELU."""

    def __init__(self, qkv_bias: bool = False) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(VOCAB, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.trf_blocks = nn.Sequential(*[BookBlock(qkv_bias) for _ in range(LAYERS)])
        self.final_norm = BookNorm(WIDTH)
        self.out_head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


class OldMinGPT(nn.Module):
    """karpathy/minGPT of 2020: key, query and value apart, positions as a parameter (1, T, C), exact GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(VOCAB, WIDTH), nn.Parameter(torch.zeros(1, BLOCK, WIDTH))

        def block() -> nn.ModuleDict:
            attn: Any = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("key", "query", "value", "proj")})
            attn.register_buffer("mask", torch.ones(BLOCK, BLOCK).tril().view(1, 1, BLOCK, BLOCK))
            mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))
            return nn.ModuleDict({"ln1": nn.LayerNorm(WIDTH), "ln2": nn.LayerNorm(WIDTH), "attn": attn, "mlp": mlp})

        self.blocks = nn.ModuleList(block() for _ in range(LAYERS))
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids) + self.pos_emb[:, : ids.shape[1]]
        for block in self.blocks:
            parts: Any = block
            y, attn = parts["ln1"](x), parts["attn"]
            x = x + attn["proj"](attend(attn["query"](y), attn["key"](y), attn["value"](y), HEADS))
            x = x + parts["mlp"](parts["ln2"](x))
        return self.head(self.ln_f(x))


class HandMadeBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.self_attn.add_module(name, nn.Linear(WIDTH, WIDTH, bias=name != "k_proj"))
        self.ffn = FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        y, attn = self.norm1(x), self.self_attn
        x = x + attn.out_proj(attend(attn.q_proj(y), attn.k_proj(y), attn.v_proj(y), HEADS))
        return x + self.ffn(self.norm2(x))


class HandMadeGPT(nn.Module):
    """Names of no known program: q_proj, v_proj, k_proj without a bias, `layers`, `token_embedding`, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(VOCAB, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.layers = nn.ModuleList(HandMadeBlock() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.token_embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.position_embedding(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))
