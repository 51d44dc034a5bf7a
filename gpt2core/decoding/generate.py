"""`generate`: the argument names, the layout and, with a seed, the draws of `transformers`' `generate`.

Shapes: B prompts, R num_return_sequences, T prompt tokens, V vocab_size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gpt2core.decoding.kv_cache import KVCache
from gpt2core.decoding.processors import apply_temperature, keep_top_k, keep_top_p
from gpt2core.errors import UserError
from gpt2core.model import GPT

# Below it, logits divided by it overflow fp32.
MIN_TEMPERATURE = 1e-6


def generate(
    model: GPT | Callable[[Tensor], Tensor],
    token_ids: Tensor,
    attention_mask: Tensor | None = None,
    seed: int | None = None,
    *,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float | None = 1.0,
    num_return_sequences: int = 1,
    eos_token_id: int | None = 50256,
    pad_token_id: int | None = None,
) -> Tensor:
    """Continue token_ids (B, T) int64; returns (B*R, T + new) int64, finished rows padded with `pad_token_id`.

    `attention_mask` (B, T) is 0 at left padding. With `seed` the draws are those of `torch.manual_seed(seed)` before
    transformers' `generate`; without, torch's global generator is used. `model` may be any callable (B, T) -> logits
    (B, T, V); only a GPT uses a cache. Raises UserError for options out of range, or a prompt that does not fit.
    """
    _check_options(token_ids, max_new_tokens, do_sample, temperature, top_k, top_p, num_return_sequences, seed)
    if isinstance(model, GPT):
        _check_fits(model, token_ids.shape[1], max_new_tokens)
    elif attention_mask is not None and not bool(attention_mask.all()):
        raise UserError("a padded batch needs a GPT; a plain callable takes prompts of one length.")
    generator = None
    if seed is not None:
        generator = torch.Generator(device=token_ids.device).manual_seed(seed)
    ids = token_ids.repeat_interleave(num_return_sequences, dim=0)  # (B*R, T)
    mask = None
    if attention_mask is not None and not bool(attention_mask.all()):
        mask = attention_mask.repeat_interleave(num_return_sequences, dim=0)
    next_logits = _StepLogits(model, ids, mask, max_new_tokens)
    pad = pad_token_id if pad_token_id is not None else (eos_token_id if eos_token_id is not None else 0)
    unfinished = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    first_shape = ids.shape
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits = next_logits(ids)  # (B*R, V)
            if ids.shape == first_shape and not bool(logits.logsumexp(-1).isfinite().all()):
                raise UserError("the model's logits are not finite: its weights are damaged; train or fetch it again.")
            if do_sample:
                chosen = _draw(logits, temperature, top_k, top_p, generator)
            else:
                chosen = logits.argmax(-1)
            chosen = torch.where(unfinished, chosen, pad)
            ids = torch.cat([ids, chosen[:, None]], dim=1)
            if eos_token_id is not None:
                unfinished = unfinished & (chosen != eos_token_id)
                if not bool(unfinished.any()):
                    break
    return ids.clone()  # a plain tensor, free of inference mode


class _StepLogits:
    """Logits (B, V) of the next token: incremental with a cache for a GPT, a full pass for any other callable."""

    def __init__(
        self, model: GPT | Callable[[Tensor], Tensor], ids: Tensor, mask: Tensor | None, max_new_tokens: int
    ) -> None:
        self.model, self.mask = model, mask
        self.cache = None
        if isinstance(model, GPT):
            length = ids.shape[1] + max_new_tokens
            self.cache = KVCache(model.config, len(ids), length, ids.device, model.wte.weight.dtype)

    def __call__(self, ids: Tensor) -> Tensor:
        if self.cache is None or not isinstance(self.model, GPT):
            return self.model(ids)[:, -1].float()
        if self.mask is not None and self.mask.shape[1] < ids.shape[1]:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], dim=1)
        new = ids[:, self.cache.length :]
        x = self.model.hidden_states(new, self.mask, self.cache)
        return self.model.lm_head(x[:, -1]).float()


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """One token a row, (B,)."""
    if temperature != 1.0:
        logits = apply_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None and top_p < 1.0:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(-1), num_samples=1, generator=generator)[:, 0]


def _check_fits(model: GPT, prompt_length: int, max_new_tokens: int) -> None:
    block_size = model.config.block_size
    if prompt_length + max_new_tokens > block_size + 1:
        raise UserError(
            f"a prompt of {prompt_length} tokens and {max_new_tokens} new ones do not fit into the model's block_size "
            f"({block_size}); at most {max(0, block_size + 1 - prompt_length)} new tokens fit."
        )


def _check_options(
    token_ids: Tensor,
    max_new_tokens: int,
    do_sample: bool,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    num_return_sequences: int,
    seed: int | None,
) -> None:
    if token_ids.ndim != 2 or token_ids.shape[1] == 0:
        raise UserError(f"token_ids must be (batch, tokens) with at least one token, not {tuple(token_ids.shape)}.")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens ({max_new_tokens}) must be at least 1.")
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"seed ({seed}) must be at least 0 and below 2**63.")
    if num_return_sequences < 1:
        raise UserError(f"num_return_sequences ({num_return_sequences}) must be at least 1.")
    if not do_sample:
        if num_return_sequences > 1:
            raise UserError("greedy decoding gives one text; set do_sample for several num_return_sequences.")
        return
    if not temperature >= MIN_TEMPERATURE:  # so written, it refuses NaN as well
        raise UserError(
            f"temperature ({temperature:g}) must be at least {MIN_TEMPERATURE:g}; for the likeliest token use greedy "
            "decoding."
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k ({top_k}) must be at least 1, or None for no limit.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p ({top_p}) must be above 0 and at most 1.")
