"""The settings of the page: one field for each key of `DecodingSetting`, and back from what was typed into them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from gpt2core.decoding.rules import Ids, OneOf, Whole
from gpt2core.errors import UserError, Words
from gpt2ops.params.decoding import DRAWS, EVERYWHERE, KEYS, STRATEGIES, Decoding, DecodingSetting, type_of
from gpt2ops.params.problems import user_error

DEFAULT_NEW_TOKENS = 100  # as `gpt2 generate`
Kind = Literal["whole", "number", "choice", "lines", "ids"]
# What these keys mean is said better here than by their names.
LABELS = {"max_new_tokens": "Maximum length (tokens)", "num_sequences": "Number of outputs"}
PAGE_WORDS = Words(true="true", false="false", or_none=", or empty", equals=": ", quotes=False)
_CHOICES: dict[str, Any] = {"true": True, "false": False}
# A page should not refuse a long text; `generate` does unless it is told so, and the command that is shown tells it.
_PAGE_DEFAULTS: dict[str, Any] = {"max_new_tokens": DEFAULT_NEW_TOKENS, "past_block_size": "slide"}


@dataclass(frozen=True)
class FieldSpec:
    """A setting as the page shows it."""

    key: str
    label: str
    info: str
    kind: Kind
    choices: tuple[str, ...] = ()

    @property
    def is_basic(self) -> bool:
        """Whether a strategy has a value of its own for it; the others wait among the further settings."""
        return any(strategy.keys.get(self.key) is not None for strategy in STRATEGIES.values())


def field_specs() -> dict[str, FieldSpec]:
    """Every key but the strategy itself, in the order of the schema."""
    return {key: _spec(key) for key in KEYS}


def label_of(key: str) -> str:
    """`Top p` for `top_p`."""
    return LABELS.get(key) or key.replace("_", " ").capitalize()


def uses(decoding: Decoding, key: str) -> bool:
    """Whether a strategy has this key; a seed only where something is drawn."""
    if key == "seed":
        return "do_sample" in STRATEGIES[decoding].chosen_by
    return key in STRATEGIES[decoding].keys or key in EVERYWHERE


def default_of(decoding: Decoding, key: str) -> Any:
    """What the field shows at first; None for an empty one."""
    return STRATEGIES[decoding].keys.get(key, _PAGE_DEFAULTS.get(key))


def as_typed(value: Any) -> str:
    """A value as it stands in a field."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def read_setting(decoding: str, typed: Mapping[str, Any]) -> DecodingSetting:
    """The setting that the fields hold; fields of other strategies are passed over.

    Raises UserError for what is out of range or does not belong together.
    """
    if decoding not in STRATEGIES:
        raise UserError(key="decoding", value=decoding, rule="must be one of {choices}", choices=tuple(STRATEGIES))
    specs = field_specs()
    chosen: Decoding = decoding
    values: dict[str, Any] = {"decoding": chosen}
    for key, raw in typed.items():
        if not uses(chosen, key):
            continue
        value = _read(specs[key], raw)
        can_be_off = key in DRAWS[1:] and STRATEGIES[chosen].keys.get(key) is not None and chosen != "contrastive"
        if value is not None or can_be_off:
            values[key] = value
    return checked_setting(values)


def checked_setting(values: Mapping[str, Any]) -> DecodingSetting:
    """A setting of these keys, 100 tokens long unless they say otherwise. Raises UserError in words of the schema."""
    try:
        return DecodingSetting.model_validate({"max_new_tokens": DEFAULT_NEW_TOKENS, **values})
    except ValidationError as error:
        raise user_error(error, DecodingSetting) from None


def in_labels(error: UserError) -> UserError:
    """The error with the page's labels for keys."""
    return error.spelled(lambda key: label_of(key) if key in DecodingSetting.model_fields else key, PAGE_WORDS)


def _spec(key: str) -> FieldSpec:
    rule, info = KEYS[key].rule, KEYS[key].help.rstrip(".")
    if type_of(KEYS[key]) == list[str]:
        return FieldSpec(key, label_of(key), f"{info}. One a line", "lines")
    if isinstance(rule, Ids):
        return FieldSpec(key, label_of(key), f"{info}. With commas between", "ids")
    if isinstance(rule, OneOf):
        return FieldSpec(key, label_of(key), info, "choice", tuple(map(PAGE_WORDS.show, rule.values)))
    return FieldSpec(key, label_of(key), info, "whole" if isinstance(rule, Whole) else "number")


def _read(spec: FieldSpec, raw: Any) -> Any:
    """What was typed as a value of the schema; None where the field is empty."""
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return None
    if spec.kind == "choice":
        return _CHOICES.get(str(raw), raw)
    if spec.kind == "lines":
        return [line for line in str(raw).split("\n") if line]
    if spec.kind == "ids":
        return [_number(spec, part, whole=True) for part in str(raw).replace(",", " ").split()]
    return _number(spec, raw, whole=spec.kind == "whole")


def _number(spec: FieldSpec, raw: Any, *, whole: bool) -> int | float:
    try:
        number = float(raw)
        if whole:
            return int(raw) if isinstance(raw, str) else _exact(number)
    except (TypeError, ValueError, OverflowError):
        raise UserError(key=spec.key, value=raw, rule=f"must be a {'whole ' if whole else ''}number") from None
    if not math.isfinite(number):
        raise UserError(key=spec.key, value=raw, rule="must be a finite number")
    return number


def _exact(number: float) -> int:
    if number != int(number):
        raise ValueError
    return int(number)
