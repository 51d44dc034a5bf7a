"""What one value may be. Each rule refuses a wrong value with a UserError that names the key, and imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard

from gpt2core.errors import UserError
from gpt2core.tokenizer import check_unicode

LAST_SEED = 2**63 - 1  # of torch's generators


@dataclass(frozen=True)
class Whole:
    """A whole number of at least `minimum`; None where it is off."""

    minimum: int
    optional: bool = False
    maximum: int | None = None

    def refuse(self, key: str, value: Any) -> None:
        if value is None and self.optional:
            return
        if not is_whole(value) or value < self.minimum or (self.maximum is not None and value > self.maximum):
            raise UserError(key=key, value=value, rule=f"must be a whole number of {self._range()}{or_none(self)}")

    def _range(self) -> str:
        if self.maximum is None:
            return f"at least {self.minimum}"
        upper = "below 2**63" if self.maximum == LAST_SEED else f"at most {self.maximum:,}"
        return f"at least {self.minimum} and {upper}"

    @property
    def schema(self) -> dict[str, float]:
        """The bounds in words of JSON schema."""
        bounds = {"minimum": self.minimum, "maximum": self.maximum}
        return {name: bound for name, bound in bounds.items() if bound is not None}


@dataclass(frozen=True)
class Number:
    """A finite number in a range; None where it is off."""

    minimum: float = -math.inf
    maximum: float = math.inf
    above: bool = False  # the minimum itself is outside
    below: bool = False  # the maximum itself is outside
    optional: bool = False

    def refuse(self, key: str, value: Any) -> None:
        if value is None and self.optional:
            return
        fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if fits:
            fits = value > self.minimum if self.above else value >= self.minimum
            fits = fits and (value < self.maximum if self.below else value <= self.maximum)
        if not fits:
            raise UserError(key=key, value=value, rule=f"must be a {self._range()}{or_none(self)}")

    def _range(self) -> str:
        bounds = []
        if self.minimum > -math.inf:
            bounds.append(f"{'above' if self.above else 'of at least'} {self.minimum:g}")
        if self.maximum < math.inf:
            bounds.append(f"{'below' if self.below else 'at most'} {self.maximum:g}")
        return " ".join(["number", " and ".join(bounds)]) if bounds else "finite number"

    @property
    def schema(self) -> dict[str, float]:
        """The bounds in words of JSON schema."""
        bounds = {
            "exclusiveMinimum" if self.above else "minimum": self.minimum,
            "exclusiveMaximum" if self.below else "maximum": self.maximum,
        }
        return {name: bound for name, bound in bounds.items() if math.isfinite(bound)}


@dataclass(frozen=True)
class OneOf:
    values: tuple[Any, ...]

    def refuse(self, key: str, value: Any) -> None:
        # 0 and 1 equal False and True.
        if not any(value is known or (isinstance(known, str) and value == known) for known in self.values):
            raise UserError(key=key, value=value, rule="must be one of {choices}", choices=self.values)


@dataclass(frozen=True)
class Ids:
    """Token ids, or None."""

    single: bool = False  # one id need not be in a list

    def refuse(self, key: str, value: Any) -> None:
        if value is None or (self.single and _is_id(value)) or (not self.single and value == []) or _are_ids(value):
            return
        what = "a token id, several, or None for a text without end" if self.single else "a list of token ids"
        raise UserError(key=key, value=value, rule=f"must be {what}")


@dataclass(frozen=True)
class IdLists:
    """Sequences of token ids, or None."""

    def refuse(self, key: str, value: Any) -> None:
        if value is not None and (not _is_list(value) or not value or not all(map(_are_ids, value))):
            raise UserError(key=key, value=value, rule="must be a list of lists of token ids, none of them empty")


@dataclass(frozen=True)
class Biases:
    """Numbers by sequence of token ids, or None."""

    def refuse(self, key: str, value: Any) -> None:
        if value is None:
            return
        pairs = list(value.items()) if isinstance(value, Mapping) else value
        well_formed = _is_list(pairs) and pairs and all(_is_list(pair) and len(pair) == 2 for pair in pairs)
        if not well_formed or not all(_are_ids(ids) for ids, _ in pairs):
            raise UserError(key=key, value=value, rule="must map tuples of token ids to numbers, or list pairs of both")
        for ids, bias in pairs:
            # -inf forbids a sequence; inf would leave no distribution.
            if not isinstance(bias, Real) or isinstance(bias, bool) or not bias < math.inf:
                rule = "of {ids} ({bias}) must be a finite number, or -inf to forbid it"
                raise UserError(key=key, rule=rule, ids=str(tuple(ids)), bias=repr(bias))


@dataclass(frozen=True)
class Texts:
    """A text or a list of texts, or None."""

    def refuse(self, key: str, value: Any) -> None:
        if value is None:
            return
        texts = [value] if isinstance(value, str) else value
        if not _is_list(texts) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise UserError(key=key, value=value, rule="must be a text or a list of texts, none of them empty")
        for text in texts:
            try:
                check_unicode(text)
            except UserError as error:
                raise UserError(key=key, value=text, rule=": {reason}", reason=str(error)) from None


@dataclass(frozen=True)
class Functions:
    """A function (ids, logits) -> logits, or several."""

    def refuse(self, key: str, value: Any) -> None:
        for function in value if _is_list(value) else [value]:
            if not callable(function):
                rule = "must be a function (ids, logits) -> logits, or several"
                raise UserError(key=key, value=function, rule=rule)


Rule = Whole | Number | OneOf | Ids | IdLists | Biases | Texts | Functions
SWITCH = OneOf((True, False))


def or_none(rule: Whole | Number) -> str:
    return "{or_none}" if rule.optional else ""


def is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_id(value: object) -> bool:
    return is_whole(value) and value >= 0


def _are_ids(value: Any) -> bool:
    return _is_list(value) and len(value) > 0 and all(map(_is_id, value))
