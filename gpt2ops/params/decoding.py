"""Ways of writing texts: the keys of `sample.settings` in params.yaml, of `gpt2 generate` and of the page.

Each key is an option of `gpt2core.decoding.options`; here are the strategies, and which keys each of them has.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from gpt2core.decoding.checks import check_options
from gpt2core.decoding.options import CONTRASTIVE_VALUES, OPTIONS, SAMPLING_VALUES, SEED, GenerationOptions, Option
from gpt2core.decoding.rules import Ids, Number, OneOf, Whole
from gpt2core.errors import UserError
from gpt2ops.params.problems import YAML

if TYPE_CHECKING:
    from gpt2core.tokenizer import Tokenizer

Decoding = Literal["greedy", "sample", "beam", "beam-sample", "group-beam", "contrastive", "prompt-lookup"]


@dataclass(frozen=True)
class Strategy:
    """A way of decoding: the options that choose it, and what its own keys are unless they are given."""

    chosen_by: dict[str, Any]
    keys: dict[str, Any]


def _keys() -> dict[str, Option]:
    rows = [row for row in OPTIONS.values() if row.help and row.name != "do_sample"]  # which the strategy says
    rows.insert(next(place for place, row in enumerate(rows) if row.group == "sampling"), SEED)
    return {row.key or row.name: row for row in rows}


KEYS = _keys()  # by what a person writes
DRAWS = tuple(key for key, row in KEYS.items() if row.group == "sampling" and row is not SEED)
EVERYWHERE = tuple(key for key, row in KEYS.items() if not row.reason)
_DRAWN = {**dict.fromkeys(DRAWS), **SAMPLING_VALUES, "num_sequences": None}
_SEARCHED = {**dict.fromkeys(("num_beams", "length_penalty", "early_stopping")), "num_beams": 5, "num_sequences": None}
STRATEGIES: dict[Decoding, Strategy] = {
    "greedy": Strategy({}, {}),
    "sample": Strategy({"do_sample": True}, _DRAWN),
    "beam": Strategy({}, _SEARCHED),
    "beam-sample": Strategy({"do_sample": True}, {**_DRAWN, **_SEARCHED}),
    "group-beam": Strategy(
        {}, {**_SEARCHED, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}
    ),
    "contrastive": Strategy({}, CONTRASTIVE_VALUES),
    "prompt-lookup": Strategy({}, {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": None}),
}  # fmt: skip
_KEY_OF = {row.name: key for key, row in KEYS.items()}
# Keys whose flag may be given several times, each adding one.
ONE_EACH = {"bad_words": "bad-word", "suppress_tokens": "suppress-token", "stop": "stop"}


def key_of(name: str) -> str:
    """What a person writes for an option of `generate`."""
    return _KEY_OF.get(name, name)


def flag_of(key: str) -> str:
    """`--top-p` for `top_p`."""
    return f"--{ONE_EACH.get(key) or key.replace('_', '-')}"


def type_of(row: Option) -> Any:
    """What a person's value is; words are written as text, though the library takes their token ids."""
    match row.rule:
        case Whole():
            return int
        case Number():
            return float
        case OneOf(values):
            return Literal[values]
        case Ids():
            return list[int]
    return list[str]


def _field(row: Option) -> Any:
    """The key of a row, None unless it is given. Its bounds are what Prefect holds a submission against."""
    rule = row.useful or row.rule

    def add(schema: dict[str, Any]) -> None:
        for branch in schema.get("anyOf", []):
            if branch.get("type") in ("integer", "number") and isinstance(rule, Whole | Number):
                branch.update(rule.schema)

    return type_of(row) | None, Field(None, description=row.help, json_schema_extra=add)


if TYPE_CHECKING:

    class _Keys(BaseModel):
        decoding: Decoding

        def __init__(self, **values: Any) -> None: ...

        def __getattr__(self, key: str) -> Any: ...

else:
    _Keys = create_model(
        "_Keys",
        decoding=(
            Decoding,
            Field(
                default_factory=lambda: "sample",
                description="greedy | sample | beam | beam-sample | group-beam | contrastive | prompt-lookup.",
            ),
        ),
        **{key: _field(row) for key, row in KEYS.items()},
    )


class DecodingSetting(_Keys):
    """One way of writing texts; a key that is not given is as its strategy, or else `generate`, has it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, strict=True
    )

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if key in self.model_fields_set}

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        foreign = self.model_fields_set - {*STRATEGIES[self.decoding].keys, *EVERYWHERE, "decoding", "name"}
        for key in [key for key in KEYS if key in foreign]:
            raise UserError(
                key=key,
                value=getattr(self, key),
                rule="does not belong to {chosen} decoding: {reason} ({others})",
                chosen=self.decoding,
                reason=KEYS[key].reason,
                others=", ".join(name for name, strategy in STRATEGIES.items() if key in strategy.keys),
            ).spelled(words=YAML)
        for key in ("bad_words", "stop"):
            if "" in (value := getattr(self, key) or []):
                rule = "has an empty text, which is everywhere"
                raise UserError(key=key, value=value, rule=rule, remedy="leave it out").spelled(words=YAML)
        if self.seed is not None:
            SEED.rule.refuse("seed", self.seed)
        try:
            check_options(GenerationOptions(**self.options()))
        except UserError as error:
            raise error.spelled(key_of, YAML) from None
        return self

    @property
    def draws(self) -> bool:
        """Whether the text depends on a seed."""
        return bool(STRATEGIES[self.decoding].chosen_by.get("do_sample"))

    def options(self, tokenizer: "Tokenizer | None" = None) -> dict[str, Any]:
        """Options for `generate`, but for the seed; without a tokenizer, but for the bad words."""
        strategy = STRATEGIES[self.decoding]
        values = {key: value for key, value in strategy.keys.items() if value is not None}
        for key in self.model_fields_set - {"name", "decoding", "seed", "bad_words"}:
            value = getattr(self, key)
            if value is not None or key in DRAWS:  # only there null means off
                values[key] = value
        if self.bad_words and tokenizer is not None:
            values["bad_words"] = [
                tokenizer.encode(spelling) for word in self.bad_words for spelling in dict.fromkeys((word, f" {word}"))
            ]
        return {
            **strategy.chosen_by,
            **{KEYS[key].name if key in KEYS else key: value for key, value in values.items()},
        }
