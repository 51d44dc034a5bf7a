"""Whether one of two runs has the better model, by the losses that both kept of the same held-out text."""

from dataclasses import dataclass
from typing import Any

from gpt2ops.registry.champion_score import stored_losses
from gpt2ops.registry.comparison import NOT_ENOUGH, luck_text, more_text
from gpt2ops.registry.held_out import HeldOut, held_out_of, rounded
from gpt2ops.registry.runs import Run
from gpt2ops.registry.scoring.losses_file import StoredLosses
from gpt2ops.registry.scoring.uncertainty import CONFIDENCE, Difference, difference
from gpt2ops.store.client import connect
from gpt2ops.store.errors import one_line


@dataclass(frozen=True)
class LossComparison:
    """`found` is the second run's loss minus the first's; None where they cannot be compared, as `verdict` says."""

    verdict: str
    found: Difference | None = None
    text: str = ""  # which text both were scored on

    def as_object(self) -> dict[str, Any]:
        found = self.found
        return {
            "verdict": self.verdict,
            "text": self.text or None,
            "difference": found.difference if found else None,
            "interval": list(found.interval) if found and found.interval else None,
            "p_value": found.p_value if found else None,
            "blocks": found.blocks if found else None,
            "confidence": CONFIDENCE,
        }


def compare_losses(first: Run, second: Run) -> LossComparison:
    """The paired difference on the same blocks; never raises: what stands in the way is the verdict."""
    scores: list[tuple[StoredLosses, HeldOut]] = []
    for run in (first, second):
        try:
            stored = stored_losses(connect(), run.run_id)
        except Exception as error:  # requests, SQLAlchemy, MLflow and a damaged file each raise their own
            return LossComparison(f"cannot compare: {run.run_id[:8]}: {one_line(error)}")
        held_out = held_out_of({"gate": stored.gate}) if stored else None
        if stored is None or held_out is None or stored.compared is None:
            why = "no text was held out" if stored else "its run kept no losses by block"
            return LossComparison(f"cannot compare: {run.run_id[:8]}: {why}")
        scores.append((stored, held_out))
    (one, own), (two, other) = scores
    if not own.comparable_to(other):
        return LossComparison("cannot compare: the two were scored on different text, or on different parts of it")
    assert one.compared is not None
    assert two.compared is not None
    found = difference(two.compared, one.compared)
    return LossComparison(_verdict(found, own, other, (first.run_id[:8], second.run_id[:8])), found, own.text)


def _verdict(found: Difference, own: HeldOut, other: HeldOut, names: tuple[str, str]) -> str:
    luck = luck_text(found, CONFIDENCE).lstrip(";, ")
    if rounded(own.perplexity) == rounded(other.perplexity):
        return f"equal ({luck})"
    if not found.is_sure:
        return f"{NOT_ENOUGH}: {luck}; {more_text(found, own.tokens)}"
    return f"{names[found.difference < 0]} is better: {luck}"
