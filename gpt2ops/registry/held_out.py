"""A model's score on held-out text, and the champion that it is compared with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from gpt2core.evaluation.blocks import BlockLosses
from gpt2ops.registry.scoring.coverage import coverage_text


@dataclass(frozen=True)
class HeldOut:
    """`tokens` of the split's `split_tokens` are scored; both are 0 in scores of earlier versions, which kept none."""

    split: str  # test if it has tokens, else val
    perplexity: float
    data_sha256: str
    protocol: str  # gpt2ops/registry/scoring/gate_score.py
    tokens: int = 0
    split_tokens: int = 0
    first_tokens: int = 0  # read from the start of the split: of examples, only answers are scored

    def comparable_to(self, other: "HeldOut") -> bool:
        return (self.split, self.data_sha256, self.protocol) == (other.split, other.data_sha256, other.protocol)

    @property
    def text(self) -> str:
        """Which text it is of, such as `all 32,456 tokens of test`; empty for scores of earlier versions."""
        if not self.tokens:
            return ""
        return f"{coverage_text({'tokens': self.tokens, 'split_tokens': self.split_tokens})} of {self.split}"


@dataclass(frozen=True)
class Champion:
    """`perplexity` is that on the candidate's held-out data, None if not measured; `problem` then says why.

    `losses` are those of the same text by block. `same_recipe`: nothing but the seed tells the candidate from it.
    """

    version: str
    perplexity: float | None
    problem: str | None = None
    measured_again: bool = False
    same_version: bool = False  # the candidate is the champion already
    losses: BlockLosses | None = None
    same_recipe: bool = False


def held_out_of(evaluation: Mapping[str, Any]) -> HeldOut | None:
    """The score of evaluate.json that models are compared by; None where no text was held out."""
    score = evaluation.get("gate") or {}
    if not is_number(score.get("perplexity")):
        return None
    names = ("split", "data_sha256", "protocol")
    split, data_sha256, protocol = (str(score.get(name, "")) for name in names)
    keys = ("tokens", "split_tokens", "first_tokens")
    counts = (int(score[name]) if is_number(score.get(name)) else 0 for name in keys)
    return HeldOut(split, float(score["perplexity"]), data_sha256, protocol, *counts)


def rounded(perplexity: float) -> float:
    """To five digits: another machine, or the exported graph, computes the same model's last ones differently."""
    return float(f"{perplexity:.5g}")


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
