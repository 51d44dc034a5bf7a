"""What evaluate.json says of a score."""

from typing import Any

from gpt2core.evaluation.blocks import BLOCK_TOKENS, FEWEST_BLOCKS
from gpt2core.evaluation.scores import Score
from gpt2ops.registry.scoring.gate_score import scorable_tokens
from gpt2ops.registry.scoring.uncertainty import uncertainty


def score_entry(score: Score, read: int, everything: int) -> dict[str, Any]:
    """The score of the first `read` tokens of `everything`, with how sure it is: None where that cannot be said."""
    sure = uncertainty(score.blocks)
    return {
        **score.as_dict(),
        "split_tokens": scorable_tokens(score, read, everything),
        "blocks": len(score.blocks),
        "block_unit": score.blocks.unit,
        "loss_stderr": sure.stderr if sure else None,
        "perplexity_low": sure.perplexity_low if sure else None,
        "perplexity_high": sure.perplexity_high if sure else None,
    }


def too_short(entry: dict[str, Any]) -> str:
    """Why a score has no interval."""
    if entry["blocks"] >= FEWEST_BLOCKS:
        return "a loss is not finite"
    return f"blocks of text: {entry['blocks']}, needed {FEWEST_BLOCKS} (about {FEWEST_BLOCKS * BLOCK_TOKENS:,} tokens)"
