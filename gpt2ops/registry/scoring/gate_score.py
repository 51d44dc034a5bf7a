"""The one score by which the gate compares models, each with its own full context.

It is a function of the model, the text and evaluate.gate_tokens alone, so it puts models in order. By the protocol of
one of two models each could beat the other.
"""

from typing import Any

import torch

from gpt2core.data.tokens import TokenSet
from gpt2core.evaluation.scores import Logits, Score, Tokens, evaluate
from gpt2core.model import GPT


def protocol(tokens: int) -> str:
    """How `tokens` tokens from the start of a held-out text are scored."""
    return f"own context, half of it new in each window, first {tokens:,} tokens, fp32"


def gate_score(
    model: Logits, split: Tokens, block_size: int, tokens: int, *, batch_size: int = 16, device: Any = None
) -> Score:
    """The score on the first `tokens` tokens of `split`, at least two, in fp32."""
    score = evaluate(
        model,
        split,
        block_size=block_size,
        stride=max(1, block_size // 2),
        batch_size=batch_size,
        max_tokens=tokens,
        device=device,
    )
    assert score is not None, "a held-out split has tokens"
    return score


def scorable_tokens(score: Score, read: int, everything: int) -> int:
    """How many of a text's tokens could be scored, of which `read` were read: of examples, only answers can be."""
    return score.tokens if read >= everything else everything - 1


def gate_entry(
    model: GPT, tokens: TokenSet, split: str, most: int | None, batch_size: int, device: torch.device
) -> tuple[dict[str, Any], Score]:
    """The value of `gate` in evaluate.json, and the score with its losses by block."""
    text = tokens.split(split)
    count = min(len(text), most or len(text))
    score = gate_score(model, text, model.config.block_size, count, batch_size=batch_size, device=device)
    entry = {
        "split": split,
        "perplexity": score.perplexity,
        "tokens": score.tokens,
        "first_tokens": count,
        "split_tokens": scorable_tokens(score, count, len(text)),
        "data_sha256": tokens.manifest["sha256"],
        "protocol": protocol(count),
    }
    return entry, score
