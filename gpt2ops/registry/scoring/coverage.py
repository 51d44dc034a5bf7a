"""How much of each split is scored, and how that is said beside a score."""

from collections.abc import Mapping
from typing import Any

# Tokens of a split where more would cost more than the training did.
FIRST_TOKENS = 25_000
# A step of training takes as long as three forward passes: one forward, two backward (Kaplan et al. 2020, section 2.1).
PASSES_A_TRAINED_TOKEN = 3
HELD_OUT = ("val", "test")


def tokens_to_score(
    max_tokens: int | str | None, sizes: Mapping[str, int], *, overlap: float, gate_tokens: int, trained_tokens: int
) -> dict[str, int]:
    """How many tokens of each split of `sizes` tokens are scored, from its start.

    `auto`: all held-out text where its forward passes are fewer than the training's, which is counted, not timed; else
    FIRST_TOKENS of each split. Of the training text as much as of the longest held-out one, at least FIRST_TOKENS.
    `overlap` is how many windows a token is in; `gate_tokens` are scored once more, the last split before training too.
    """
    if max_tokens != "auto":
        return {name: min(size, int(max_tokens or size)) for name, size in sizes.items()}
    held_out = [sizes.get(name, 0) for name in HELD_OUT]
    before = next((size for size in reversed(held_out) if size), 0)
    work = overlap * (sum(held_out) + before) + 2 * gate_tokens
    if work > PASSES_A_TRAINED_TOKEN * trained_tokens:
        return {name: min(size, FIRST_TOKENS) for name, size in sizes.items()}
    most = max(FIRST_TOKENS, *held_out)
    return {name: size if name in HELD_OUT else min(size, most) for name, size in sizes.items()}


def coverage_text(score: Mapping[str, Any]) -> str:
    """Such as `all 32,456 tokens` or `the first 24,999 of 32,456 tokens`; scores of earlier versions say less."""
    tokens, everything = score.get("tokens"), score.get("split_tokens")
    if tokens is None:
        return ""
    if everything is None:
        return f"{tokens:,.0f} tokens"
    if tokens >= everything:
        return f"all {tokens:,.0f} tokens"
    return f"the first {tokens:,.0f} of {everything:,.0f} tokens"


def interval_text(score: Mapping[str, Any]) -> str:
    """Such as `95% interval 320.1 to 361.2`; empty where there is none."""
    low, high = score.get("perplexity_low"), score.get("perplexity_high")
    return "" if low is None or high is None else f"95% interval {_shown(low)} to {_shown(high)}"


def certainty_text(score: Mapping[str, Any]) -> str:
    """Both, to stand beside a perplexity."""
    return "; ".join(filter(None, [interval_text(score), coverage_text(score)]))


def _shown(perplexity: float) -> str:
    if perplexity >= 1e7:
        return f"{perplexity:.1e}"
    return f"{perplexity:,.{0 if perplexity >= 1000 else 1 if perplexity >= 10 else 2}f}"


def split_score(metrics: Mapping[str, Any], split: str) -> dict[str, Any]:
    """What a run's metrics, as `evaluate/test_tokens`, say of a split: the names of evaluate.json."""
    head = f"evaluate/{split}_"
    return {key.removeprefix(head): value for key, value in metrics.items() if key.startswith(head)}


def forgetting_text(found: dict[str, Any]) -> str:
    """For the log, the report and the model card."""
    interval = found["interval"]
    sure = f" (95% interval {interval[0]:+.3f} to {interval[1]:+.3f})" if interval else ""
    return (
        f"loss on the control text ({found['control']}, {found['tokens']:,} tokens): {found['loss_before']:.3f} before "
        f"training, {found['loss_after']:.3f} after, {found['loss_increase']:+.3f} nats per token{sure}"
    )
