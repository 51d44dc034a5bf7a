"""The registry gate decides from metrics alone whether a model may become champion, and gives the reasons."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from gpt2ops.params.sections import Gate


@dataclass(frozen=True)
class HeldOut:
    """A model's score on held-out text."""

    split: str  # test if it has tokens, else val
    perplexity: float
    data_sha256: str
    protocol: str  # gpt2ops/registry/gate_score.py

    def comparable_to(self, other: "HeldOut") -> bool:
        return (self.split, self.data_sha256, self.protocol) == (other.split, other.data_sha256, other.protocol)


@dataclass(frozen=True)
class Champion:
    """`perplexity` is that on the candidate's held-out data, None if not measured; `problem` then says why."""

    version: str
    perplexity: float | None
    problem: str | None = None
    measured_again: bool = False
    same_version: bool = False  # the candidate is the champion already


@dataclass(frozen=True)
class GateDecision:
    passed: bool
    memorising: bool
    reasons: list[str]

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "memorising": self.memorising, "reasons": self.reasons}


def held_out_of(evaluation: Mapping[str, Any]) -> HeldOut | None:
    """The score of evaluate.json that models are compared by; None where no text was held out."""
    score = evaluation.get("gate") or {}
    if not _is_number(score.get("perplexity")):
        return None
    names = ("split", "data_sha256", "protocol")
    split, data_sha256, protocol = (str(score.get(name, "")) for name in names)
    return HeldOut(split, float(score["perplexity"]), data_sha256, protocol)


def judge(
    evaluation: Mapping[str, Any], train: Mapping[str, Any], champion: Champion | None, thresholds: Gate
) -> GateDecision:
    """Compare evaluate.json and train.json with the thresholds and the champion."""
    held_out = held_out_of(evaluation)
    refusals: list[str] = []
    remarks: list[str] = []
    memorising = evaluation.get("verdict") == "memorising"
    if memorising:
        remarks.append(_memorising(evaluation))
    refusals += _failed_thresholds(evaluation, train, held_out, thresholds)
    comparison, is_better = _compare_with_champion(held_out, champion, thresholds)
    (remarks if is_better else refusals).append(comparison)
    return GateDecision(passed=not refusals, memorising=memorising, reasons=refusals + remarks)


def _failed_thresholds(
    evaluation: Mapping[str, Any], train: Mapping[str, Any], held_out: HeldOut | None, thresholds: Gate
) -> list[str]:
    refusals = []
    limit = thresholds.max_perplexity
    if limit is not None and held_out is None:
        refusals.append(f"No text was held out, so register.gate.max_perplexity ({limit:g}) cannot be checked.")
    elif limit is not None and held_out is not None and held_out.perplexity > limit:
        refusals.append(
            f"Held-out perplexity {held_out.perplexity:.2f} is above register.gate.max_perplexity ({limit:g})."
        )
    limit, recall = thresholds.max_verbatim_recall, evaluation.get("verbatim_recall")
    if limit is not None and not _is_number(recall):
        refusals.append(
            f"Verbatim recall was not measured, so register.gate.max_verbatim_recall ({limit:g}) cannot be checked; "
            "set evaluate.recall_passages above 0."
        )
    elif limit is not None and recall is not None and recall > limit:
        refusals.append(f"Verbatim recall {recall:.0%} is above register.gate.max_verbatim_recall ({limit:.0%}).")
    if thresholds.require_target and not train.get("target_reached"):
        target = train.get("target_loss")
        goal = f"its target loss of {target:g}" if _is_number(target) else "a target loss: none was set"
        refusals.append(f"The training did not reach {goal}, and register.gate.require_target is on.")
    return refusals


def _compare_with_champion(held_out: HeldOut | None, champion: Champion | None, thresholds: Gate) -> tuple[str, bool]:
    """The reason as a sentence, and whether the candidate may replace the champion."""
    if champion is None:
        measured = f" Its held-out perplexity is {held_out.perplexity:.2f}." if held_out else ""
        return f"There was no champion yet.{measured}", True
    name = f"the champion (version {champion.version})"
    if champion.same_version:
        return "This version is the champion already.", True
    if held_out is None:
        return f"No text was held out, so it cannot be compared with {name}.", False
    if champion.perplexity is None or not math.isfinite(champion.perplexity):
        problem = champion.problem or "it has no held-out perplexity"
        return f"It cannot be compared with {name}: {problem}.", False
    again = ", measured again on this data" if champion.measured_again else ""
    numbers = f"{held_out.perplexity:.2f} against {champion.perplexity:.2f} of {name}{again}"
    own, other = rounded(held_out.perplexity), rounded(champion.perplexity)
    needed = other * (1 - thresholds.min_improvement)
    if own < needed or (thresholds.min_improvement > 0 and own == needed):
        return f"Held-out perplexity is better: {numbers}.", True
    if own < other:
        share = 1 - own / other
        return (
            f"Held-out perplexity is better by {share:.1%} only, but register.gate.min_improvement is "
            f"{thresholds.min_improvement:.1%}: {numbers}."
        ), False
    relation = "equal" if own == other else "worse"
    return f"Held-out perplexity is {relation}: {numbers}.", False


def rounded(perplexity: float) -> float:
    """To five digits: another machine, or the exported graph, computes the same model's last ones differently."""
    return float(f"{perplexity:.5g}")


def _memorising(evaluation: Mapping[str, Any]) -> str:
    facts = []
    recall, gap = evaluation.get("verbatim_recall"), evaluation.get("generalisation_gap")
    if _is_number(recall):
        facts.append(f"it repeats {recall:.0%} of the training passages word for word")
    if _is_number(gap):
        facts.append(f"its held-out loss is {gap:.2f} above its training loss")
    return f"The model memorises its training text{': ' if facts else ''}{' and '.join(facts)}."


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
