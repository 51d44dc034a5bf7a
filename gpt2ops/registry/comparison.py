"""Whether a candidate is better than the champion, or only luckier: the paired difference of their losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt2core.evaluation.blocks import BLOCK_TOKENS, FEWEST_BLOCKS, BlockLosses
from gpt2ops.params.sections import Gate
from gpt2ops.registry.held_out import Champion, HeldOut, is_number, rounded
from gpt2ops.registry.scoring.uncertainty import Difference, difference

NOT_ENOUGH = "not enough text to tell"
FEWEST_SEEDS = 3
_MOST_TIMES = 100  # of more text than this it is idle to speak


@dataclass(frozen=True)
class Comparison:
    """`sentence` is the reason for the decision. `found` is None where nothing was compared."""

    sentence: str
    promoted: bool
    found: Difference | None = None
    confidence: float | None = None
    seed_stdev: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The value of `comparison` in registered.json; loss of the candidate minus that of the champion, in nats."""
        found = self.found
        return {
            "difference": found.difference if found else None,
            "interval": list(found.interval) if found and found.interval else None,
            "p_value": found.p_value if found else None,
            "blocks": found.blocks if found else None,
            "confidence": self.confidence,
            "seed_stdev": self.seed_stdev,
            "promoted_because": self.sentence if self.promoted else None,
        }


def compare_with_champion(
    held_out: HeldOut | None,
    losses: BlockLosses | None,
    champion: Champion | None,
    thresholds: Gate,
    seeds: Mapping[str, Any] | None = None,
) -> Comparison:
    """`losses` are the candidate's by block; `seeds` what train.json says of several seeds.

    A candidate is promoted only where its perplexity is lower than the champion's, so that no models can beat each
    other in a circle; and where the difference is not luck. A tie leaves the champion where it is.
    """
    if champion is None:
        measured = f" Its held-out perplexity is {held_out.perplexity:.2f}{_of(held_out)}." if held_out else ""
        return Comparison(f"There was no champion yet.{measured}", True)
    name = f"the champion (version {champion.version})"
    if champion.same_version:
        return Comparison("This version is the champion already.", True)
    if held_out is None:
        return Comparison(f"No text was held out, so it cannot be compared with {name}.", False)
    if champion.perplexity is None or not math.isfinite(champion.perplexity):
        problem = champion.problem or "it has no held-out perplexity"
        return Comparison(f"It cannot be compared with {name}: {problem}.", False)
    if losses is None or champion.losses is None or not _same_blocks(losses, champion.losses):
        return Comparison(
            f"It cannot be compared with {name}: there are no losses of both on the same blocks of text; run "
            "`dvc repro --force evaluate`.",
            False,
        )
    stdev, count = _seed_luck(seeds)
    found = difference(losses, champion.losses, thresholds.confidence, seed_stdev=stdev, seeds=count)
    again = ", measured again on this data" if champion.measured_again else ""
    numbers = f"{held_out.perplexity:.2f} against {champion.perplexity:.2f} of {name}{again}"
    sentence, promoted = _verdict(found, held_out, champion, thresholds, f"{numbers}{_of(held_out)}", count)
    return Comparison(sentence, promoted, found, thresholds.confidence, stdev if count else None)


def _verdict(
    found: Difference, held_out: HeldOut, champion: Champion, thresholds: Gate, numbers: str, seeds: int
) -> tuple[str, bool]:
    assert champion.perplexity is not None
    own, other = rounded(held_out.perplexity), rounded(champion.perplexity)
    luck = luck_text(found, thresholds.confidence)
    if own == other:
        return f"Held-out perplexity is equal: {numbers}. A tie leaves the champion in its place.", False
    if own > other:
        return f"Held-out perplexity is worse: {numbers}{luck}.", False
    if found.interval is None or not found.is_sure:
        return (
            f"Held-out perplexity is lower, but there is {_not_sure(found, held_out, seeds)}: {numbers}{luck}.",
            False,
        )
    if champion.same_recipe and not seeds:
        return (
            "Held-out perplexity is lower, but the settings of data, model and train are the champion's: which of two "
            f"seeds does better is luck. `gpt2 models promote --force` takes it all the same: {numbers}{luck}."
        ), False
    needed = other * (1 - thresholds.min_improvement)
    if own < needed or (thresholds.min_improvement > 0 and own == needed):
        alone = "" if seeds else " The luck of the seed is not counted: that takes run.seeds: 3."
        return f"Held-out perplexity is better: {numbers}{luck}.{alone}", True
    return (
        f"Held-out perplexity is better by {1 - own / other:.1%} only, but register.gate.min_improvement is "
        f"{thresholds.min_improvement:.1%}: {numbers}{luck}."
    ), False


def luck_text(found: Difference, confidence: float) -> str:
    """The change of perplexity with its interval, to stand behind two numbers."""
    if found.interval is None or found.p_value is None:
        return f", on {found.blocks} {'block' if found.blocks == 1 else 'blocks'} of text"
    low, high = (_change(value) for value in found.interval)
    return (
        f"; change {_change(found.difference)}, {confidence:.0%} interval {low} to {high}, p {p_text(found.p_value)}, "
        f"{found.blocks:,} blocks"
    )


def p_text(p_value: float) -> str:
    return f"= {p_value:.2g}" if p_value >= 0.001 else "< 0.001"


def more_text(found: Difference, tokens: int) -> str:
    """How much text would tell the two models apart."""
    if found.interval is None:
        return f"blocks of it: {found.blocks}, needed {FEWEST_BLOCKS}, about {FEWEST_BLOCKS * BLOCK_TOKENS:,} tokens"
    times = found.times_more
    if times is None or times > _MOST_TIMES:
        return f"more than {_MOST_TIMES} times as much would be needed"
    times = max(times, 1.1)
    return f"about {times:.2g} times as much, {times * tokens:,.0f} tokens, would do"


def _not_sure(found: Difference, held_out: HeldOut, seeds: int) -> str:
    if found.interval is not None and seeds and found.times_more is None:
        return "more luck than that in the seeds of one recipe, which lie as far apart whatever the text"
    more = more_text(found, held_out.tokens)
    more += "" if held_out.tokens >= held_out.split_tokens else " (evaluate.gate_tokens)"
    return f"{NOT_ENOUGH} ({more})"


def _seed_luck(seeds: Mapping[str, Any] | None) -> tuple[float, int]:
    """How far several seeds of the candidate's recipe lie apart, and how many; 0 of two or fewer, which say nothing."""
    stdev, count = (seeds or {}).get("stdev"), len((seeds or {}).get("runs") or ())
    return (float(stdev), count) if is_number(stdev) and count >= FEWEST_SEEDS else (0.0, 0)


def _same_blocks(first: BlockLosses, second: BlockLosses) -> bool:
    return first.counts.tolist() == second.counts.tolist()


def _of(held_out: HeldOut) -> str:
    return f", on {held_out.text}" if held_out.text else ""


def _change(loss: float) -> str:
    return f"{math.expm1(min(loss, 700.0)):+.1%}" if abs(loss) >= 0.0005 else f"{math.expm1(loss):+.2%}"
