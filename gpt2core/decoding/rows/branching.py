"""Rows that branch from few prompts, as beams and candidates do: tokens that several share are stored and read once.

All tokens of a prompt's rows lie in one line of the cache, and a mask says which of them a row has in its past: the
tree attention of SpecInfer (Miao et al. 2023, arXiv 2305.09781). Replacing a row by another copies a row of the mask.

Shapes: B prompts, N rows of each, S tokens stored of a prompt, T tokens of the prompt, V vocab_size, C n_embd.
"""

import torch
from torch import Tensor

from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.rows.cached import check_finite
from gpt2core.decoding.rows.kv_cache import KVCache

SPARE = 16  # cached tokens that no row attends to, beyond which the cache is compacted


class BranchingRows:
    """`SearchRows` of a packed GPT within its block_size.

    The first `select` gives each prompt N rows, and later ones keep that: a row takes the place of rows of its prompt
    only. Tokens are appended one by one.
    """

    def __init__(self, model: PackedGPT, max_length: int, copies: int) -> None:
        """`max_length` is the most tokens a row will hold, `copies` the most rows of a prompt."""
        self.model, self.max_length, self.copies = model, max_length, copies
        self.length = 0
        self.hidden: Tensor | None = None
        self._cache: KVCache | None = None
        self._seen = torch.empty(0, 1, 0, dtype=torch.bool)  # (B, N, S) what each row has in its past
        self._padding = torch.empty(0, 1, dtype=torch.int64)  # (B, 1) at the left of each prompt

    def append(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Append tokens (B*N, 1), at first prompts (B, T), int64; returns logits (B*N, V) fp32 after the last."""
        hidden = self._read_prompts(tokens, mask) if self._cache is None else self._read_step(self._cache, tokens)
        logits = self.model.lm_head(hidden[:, -1])
        if self.hidden is None:
            check_finite(logits)
        self.hidden = hidden
        return logits

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (B*N',) int64 in that order: N' of each prompt."""
        assert self._cache is not None
        B, N, S = self._seen.shape
        self.hidden = None if self.hidden is None else self.hidden[rows]
        local = rows.view(B, -1) - N * torch.arange(B)[:, None]  # (B, N')
        self._seen = self._seen.gather(1, local[..., None].expand(-1, -1, S))
        self._compact(self._cache)

    def _read_prompts(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        B, T = tokens.shape
        shared = self.max_length + SPARE + self.copies  # where rows differ in a few tokens only
        distinct = shared + self.copies * (self.max_length - T)  # where they share only the prompt
        self._cache = KVCache(self.model.config, B, distinct, tokens.device, torch.float32, likely_length=shared)
        mask = torch.ones_like(tokens) if mask is None else mask
        self._seen, self._padding, self.length = mask.bool()[:, None], T - mask.sum(-1, keepdim=True), T
        return self.model.hidden_states(tokens, mask if bool(self._padding.any()) else None, self._cache)

    def _read_step(self, cache: KVCache, tokens: Tensor) -> Tensor:
        B, N, _ = self._seen.shape
        diagonal = torch.eye(N, dtype=torch.bool).expand(B, N, N)
        self._seen = torch.cat([self._seen, diagonal], dim=2)
        hidden = self.model.branch_states(tokens.view(B, N), self.length - self._padding, self._seen, cache)
        self.length += 1
        return hidden.view(B * N, 1, -1)

    def _compact(self, cache: KVCache) -> None:
        """Drop the tokens that no row attends to, once there are more than SPARE."""
        alive = self._seen.any(1)  # (B, S)
        count = int(alive.sum(-1).amax())
        if alive.shape[1] <= count + SPARE:
            return
        # Rows with fewer than `count` keep some tokens that no row attends to.
        kept = alive.long().argsort(dim=1, descending=True, stable=True)[:, :count]
        cache.keep(kept)
        self._seen = self._seen.gather(2, kept[:, None].expand(-1, self._seen.shape[1], -1))
