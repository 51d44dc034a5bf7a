"""How texts are written: the one schema behind `sample.settings` in params.yaml and the flags of `gpt2 generate`.

Names are those of `gpt2core.decoding.options.GenerationOptions` but for three that a person writes as text. What a key
may be is `gpt2core.decoding.checks`' to say; here are the strategies, and which keys each of them has.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from gpt2core.errors import UserError

if TYPE_CHECKING:
    from gpt2core.tokenizer import Tokenizer

Decoding = Literal["greedy", "sample", "beam", "beam-sample", "group-beam", "contrastive", "prompt-lookup"]


@dataclass(frozen=True)
class Strategy:
    """A way of decoding: the options that choose it, and what its own keys are unless they are given."""

    chosen_by: dict[str, Any]
    keys: dict[str, Any]


DRAWS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("num_beams", "length_penalty", "early_stopping")
EVERYWHERE = (
    "seed", "max_new_tokens", "min_new_tokens", "max_time", "repetition_penalty", "no_repeat_ngram_size", "bad_words",
    "suppress_tokens", "stop", "past_block_size",
)  # fmt: skip
_DRAWN = {**dict.fromkeys(DRAWS), "temperature": 0.8, "top_k": 50, "top_p": 0.95, "num_sequences": None}
_SEARCHED = {**dict.fromkeys(BEAMS), "num_beams": 5, "num_sequences": None}
STRATEGIES: dict[Decoding, Strategy] = {
    "greedy": Strategy({}, {}),
    "sample": Strategy({"do_sample": True}, _DRAWN),
    "beam": Strategy({}, _SEARCHED),
    "beam-sample": Strategy({"do_sample": True}, {**_DRAWN, **_SEARCHED}),
    "group-beam": Strategy(
        {}, {**_SEARCHED, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}
    ),
    "contrastive": Strategy({}, {"penalty_alpha": 0.6, "top_k": 4}),
    "prompt-lookup": Strategy({}, {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": None}),
}  # fmt: skip
# Why a key has no place in the strategies that lack it.
REASONS = {
    **dict.fromkeys(DRAWS, "it shapes what is drawn at random"),
    **dict.fromkeys(BEAMS, "it belongs to a beam search"),
    "num_beam_groups": "it belongs to a search in groups",
    "diversity_penalty": "it keeps the groups of a search apart",
    "penalty_alpha": "it weighs contrastive search",
    "prompt_lookup_num_tokens": "it belongs to looking up the prompt",
    "max_matching_ngram_size": "it belongs to looking up the prompt",
    "num_sequences": "one prompt has one such text",
}
SEED_LIMIT = 2**63  # of PyTorch's generators
# What a person writes, and what `generate` calls it.
RENAMED = {"num_sequences": "num_return_sequences", "bad_words": "bad_words_ids", "stop": "stop_strings"}

# Keys whose flag may be given several times, each adding one.
ONE_EACH = {"bad_words": "bad-word", "suppress_tokens": "suppress-token", "stop": "stop"}


def bounded(
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """An option that is None unless given. The bounds are what Prefect holds a submission against.

    `check_options` has them too, but to import it is to import PyTorch; a test compares the two.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "exclusiveMinimum": above, "exclusiveMaximum": below}
    given = {key: value for key, value in bounds.items() if value is not None}

    def add(schema: dict[str, Any]) -> None:
        for branch in schema.get("anyOf", [schema]):
            if branch.get("type") in ("integer", "number"):
                branch.update(given)

    return Field(None, json_schema_extra=add)


class DecodingSetting(BaseModel):
    """One way of writing texts; a key that is not given is as its strategy, or else `generate`, has it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, strict=True
    )

    decoding: Decoding = Field(default_factory=lambda: "sample")
    """greedy | sample | beam | beam-sample | group-beam | contrastive | prompt-lookup."""
    num_sequences: int | None = bounded(1, 100_000)
    """Texts a prompt."""
    max_new_tokens: int | None = bounded(1)
    """Most tokens a text."""
    min_new_tokens: int | None = bounded(0)
    """No end of text before so many."""
    max_time: float | None = bounded(above=0)
    """Seconds after which a text ends where it is."""
    seed: int | None = bounded(0, 2**63 - 1)
    """The same seed gives the same text on the same device; text k of a prompt has seed + k."""
    temperature: float | None = bounded(above=0)
    """Below 1 the likely tokens gain, above 1 the unlikely."""
    top_k: int | None = bounded(0)
    """Only so many of the likeliest tokens; 0: all."""
    top_p: float | None = bounded(above=0, maximum=1)
    """Only the likeliest tokens that together have this probability."""
    min_p: float | None = bounded(0, 1)
    """Only tokens of at least this share of the likeliest one's probability."""
    typical_p: float | None = bounded(above=0, maximum=1)
    """Only the most typical tokens that together have this probability."""
    epsilon_cutoff: float | None = bounded(0, below=1)
    """Only tokens of at least this probability."""
    eta_cutoff: float | None = bounded(0, below=1)
    """Only tokens above a probability that falls with the entropy."""
    num_beams: int | None = bounded(1, 100_000)
    """Texts followed at once."""
    length_penalty: float | None = bounded(-50, 50)
    """Above 0 the search prefers longer texts, below 0 shorter ones."""
    early_stopping: Literal[True, False, "never"] | None = Field(None)
    """true: stop at num_beams finished texts; false: where better ones are unlikely; never: where impossible."""
    num_beam_groups: int | None = bounded(2)
    """Groups the beams are in; each avoids what the ones before it chose."""
    diversity_penalty: float | None = bounded(above=0)
    """What a token costs a group for each earlier group that chose it."""
    penalty_alpha: float | None = bounded(above=0, maximum=1)
    """Weight against tokens that resemble the text so far."""
    prompt_lookup_num_tokens: int | None = bounded(1)
    """Tokens guessed from the text so far and checked at once."""
    max_matching_ngram_size: int | None = bounded(1)
    """Longest run of tokens looked up."""
    repetition_penalty: float | None = bounded(above=0)
    """Above 1 tokens that the text has already become less likely."""
    no_repeat_ngram_size: int | None = bounded(0)
    """No run of so many tokens twice; 0: any."""
    bad_words: list[str] | None = Field(None)
    """Words that are not to be written, after a blank or not."""
    suppress_tokens: list[int] | None = Field(None)
    """Token ids that are not to be written."""
    stop: list[str] | None = Field(None)
    """The text ends with the first of these."""
    past_block_size: Literal["refuse", "slide"] | None = Field(None)
    """A text longer than the model's block_size: refuse, or slide the window."""

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if key in self.model_fields_set}

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        known = {*STRATEGIES[self.decoding].keys, *EVERYWHERE, "decoding", "name"}
        for key in type(self).model_fields:
            if key in self.model_fields_set - known:
                others = ", ".join(name for name, strategy in STRATEGIES.items() if key in strategy.keys)
                raise ValueError(
                    f"{key} ({getattr(self, key)}) does not belong to {self.decoding} decoding: {REASONS[key]} "
                    f"({others})."
                )
        if "" in (self.bad_words or []) or "" in (self.stop or []):
            key = "bad_words" if "" in (self.bad_words or []) else "stop"
            raise ValueError(f"{key} ({getattr(self, key)}) has an empty text, which is everywhere; leave it out.")
        return self

    def check(self) -> None:
        """Raises UserError for a value out of range, or keys that make no sense together. Imports PyTorch."""
        from gpt2core.decoding.checks import check_options
        from gpt2core.decoding.options import GenerationOptions

        if self.seed is not None and not 0 <= self.seed < SEED_LIMIT:
            raise UserError(f"seed ({self.seed}) must be at least 0 and below 2**63.")
        try:
            check_options(GenerationOptions(**self.options()))
        except UserError as error:
            raise UserError(in_our_words(str(error))) from None

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
        return {**strategy.chosen_by, **{RENAMED.get(key, key): value for key, value in values.items()}}


def flag_of(key: str) -> str:
    """`--top-p` for `top_p`."""
    return f"--{ONE_EACH.get(key) or key.replace('_', '-')}"


def in_our_words(message: str) -> str:
    """A line of the library's, with the names that a person writes."""
    for ours, theirs in RENAMED.items():
        message = re.sub(rf"\b{theirs}\b", ours, message)
    return message.replace(" (do_sample=False)", "").replace(", or None", ", or null")
