"""What evaluate.json says of a score."""

from typing import Any

from gpt2core.evaluation.blocks import BLOCK_TOKENS
from gpt2core.evaluation.scores import Score
from gpt2ops.registry.scoring.uncertainty import FEWEST_BLOCKS, uncertainty


def score_entry(score: Score, split_tokens: int) -> dict[str, Any]:
    """The score with how sure it is and of how much of the split: None where there are too few blocks to say."""
    sure = uncertainty(score.blocks)
    return {
        **score.as_dict(),
        "split_tokens": split_tokens - 1,
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
