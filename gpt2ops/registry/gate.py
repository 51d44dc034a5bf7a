"""The registry gate decides from metrics alone whether a model may become champion, and gives the reasons."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpt2core.evaluation.blocks import BlockLosses
from gpt2ops.params.sections import Gate
from gpt2ops.registry.comparison import Comparison, compare_with_champion
from gpt2ops.registry.held_out import Champion, HeldOut, held_out_of, is_number


@dataclass(frozen=True)
class GateDecision:
    passed: bool
    memorising: bool
    reasons: list[str]
    comparison: Comparison

    def as_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "memorising": self.memorising, "reasons": self.reasons}


def judge(
    evaluation: Mapping[str, Any],
    train: Mapping[str, Any],
    champion: Champion | None,
    thresholds: Gate,
    losses: BlockLosses | None = None,
) -> GateDecision:
    """Compare evaluate.json, train.json and the model's losses by block with the thresholds and the champion."""
    held_out = held_out_of(evaluation)
    remarks: list[str] = []
    memorising = evaluation.get("verdict") == "memorising"
    if memorising:
        remarks.append(_memorising(evaluation))
    refusals = _failed_thresholds(evaluation, train, held_out, thresholds)
    comparison = compare_with_champion(held_out, losses, champion, thresholds, train.get("seeds"))
    (remarks if comparison.promoted else refusals).append(comparison.sentence)
    if refusals:
        comparison = replace(comparison, promoted=False)
    return GateDecision(not refusals, memorising, refusals + remarks, comparison)


def _failed_thresholds(
    evaluation: Mapping[str, Any], train: Mapping[str, Any], held_out: HeldOut | None, thresholds: Gate
) -> list[str]:
    refusals = []
    limit = thresholds.max_perplexity
    if limit is not None and held_out is None:
        refusals.append(f"No text was held out, so register.gate.max_perplexity ({limit:g}) cannot be checked.")
    elif limit is not None and held_out is not None and held_out.perplexity > limit:
        of = f" on {held_out.text}" if held_out.text else ""
        refusals.append(
            f"Held-out perplexity {held_out.perplexity:.2f}{of} is above register.gate.max_perplexity ({limit:g})."
        )
    limit, recall = thresholds.max_verbatim_recall, evaluation.get("verbatim_recall")
    if limit is not None and not is_number(recall):
        refusals.append(
            f"Verbatim recall was not measured, so register.gate.max_verbatim_recall ({limit:g}) cannot be checked; "
            "set evaluate.recall_passages above 0."
        )
    elif limit is not None and recall is not None and recall > limit:
        refusals.append(f"Verbatim recall {recall:.0%} is above register.gate.max_verbatim_recall ({limit:.0%}).")
    if (limit := thresholds.max_forgetting) is not None:
        refusals += _forgot(evaluation.get("forgetting"), limit)
    if thresholds.require_target and not train.get("target_reached"):
        target = train.get("target_loss")
        goal = f"its target loss of {target:g}" if is_number(target) else "a target loss: none was set"
        refusals.append(f"The training did not reach {goal}, and register.gate.require_target is on.")
    return refusals


def _forgot(found: Mapping[str, Any] | None, limit: float) -> list[str]:
    """A model that was trained from new weights had nothing to forget."""
    if not found or found["loss_increase"] <= limit:
        return []
    return [
        f"The loss on the control text rose by {found['loss_increase']:.3f} nats per token, more than "
        f"register.gate.max_forgetting ({limit:g})."
    ]


def _memorising(evaluation: Mapping[str, Any]) -> str:
    facts = []
    recall, gap = evaluation.get("verbatim_recall"), evaluation.get("generalisation_gap")
    if is_number(recall):
        facts.append(f"it repeats {recall:.0%} of the training passages word for word")
    if is_number(gap):
        facts.append(f"its held-out loss is {gap:.2f} above its training loss")
    return f"The model memorises its training text{': ' if facts else ''}{' and '.join(facts)}."
