"""The one score by which the gate compares models, each with its own full context.

It is a function of the model and the text alone, so it puts models in order. By the protocol of one of two models each
could beat the other.
"""

from typing import Any

import torch

from gpt2core.data.tokens import TokenSet
from gpt2core.evaluation.scores import Logits, Tokens, evaluate
from gpt2core.model import GPT

GATE_TOKENS = 25_000
PROTOCOL = f"own context, half of it new in each window, first {GATE_TOKENS:,} tokens, fp32"


def gate_perplexity(
    model: Logits, split: Tokens, block_size: int, *, batch_size: int = 16, device: torch.device | None = None
) -> float:
    """Perplexity on the start of `split`, which has at least two tokens, in fp32."""
    score = evaluate(
        model,
        split,
        block_size=block_size,
        stride=max(1, block_size // 2),
        batch_size=batch_size,
        max_tokens=GATE_TOKENS,
        device=device,
    )
    assert score is not None, "a held-out split has tokens"
    return score.perplexity


def gate_entry(
    model: GPT, tokens: TokenSet, split: str | None, batch_size: int, device: torch.device
) -> dict[str, Any] | None:
    """The value of `gate` in evaluate.json: None where no text was held out."""
    if split is None:
        return None
    size, text = model.config.block_size, tokens.split(split)
    perplexity = gate_perplexity(model, text, size, batch_size=batch_size, device=device)
    return {
        "split": split,
        "perplexity": perplexity,
        "tokens": min(len(text), GATE_TOKENS) - 1,
        "data_sha256": tokens.manifest["sha256"],
        "protocol": PROTOCOL,
    }
