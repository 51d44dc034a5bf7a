"""The table of decoding options: name, type, default, rule and help of each, written here and nowhere else.

Names and defaults of `generate` are those of `transformers`' GenerationConfig. params.yaml, the command, the page and
the server derive their keys from it; a stage that only reads settings imports it, so it needs no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

from gpt2core.decoding.rules import (
    LAST_SEED,
    SWITCH,
    Biases,
    Functions,
    IdLists,
    Ids,
    Number,
    OneOf,
    Rule,
    Texts,
    Whole,
)

if TYPE_CHECKING:
    from torch import Tensor

EOT_ID = 50256  # <|endoftext|> of GPT-2's vocabulary
DEFAULT_NEW_TOKENS = 20
# Rows decoded at once: far larger lists would fill the memory before any error is raised.
MOST_ROWS = 100_000
# What people get who choose no value; GenerationOptions' own defaults are those of `transformers`.
SAMPLING_VALUES = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}
CONTRASTIVE_VALUES = {"penalty_alpha": 0.6, "top_k": 4}

Mode = Literal["greedy", "sample", "beam", "group_beam", "contrastive", "prompt_lookup"]
Group = Literal["", "length", "sampling", "beams", "contrastive and lookup", "penalties"]
LogitsProcessor = Callable[["Tensor", "Tensor"], "Tensor"]  # ids (B, T) int64, logits (B, V) fp32 -> logits (B, V)
SequenceBias = Mapping[tuple[int, ...], float] | Sequence[tuple[Sequence[int], float]]


@dataclass(frozen=True)
class Option:
    """A row of the table. Without `help` an option is for callers of the library only."""

    name: str
    default: Any
    rule: Rule
    group: Group = ""
    help: str = ""
    key: str = ""  # what people write, where it is not the name
    useful: Whole | Number | None = None  # the rule where the value that means off is left out instead
    reason: str = ""  # why other strategies do not have it


def option(
    default: Any,
    rule: Rule,
    group: Group = "",
    help: str = "",
    *,
    key: str = "",
    useful: Whole | Number | None = None,
    reason: str = "",
) -> Any:
    row = {"rule": rule, "group": group, "help": help, "key": key, "useful": useful, "reason": reason}
    return field(default=default, metadata=row)


_DRAWN = "it shapes what is drawn at random"
_BEAM = "it belongs to a beam search"
_LOOKUP = "it belongs to looking up the prompt"


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Settings of one call. `checks.check_options` says whether they make sense together."""

    num_return_sequences: int = option(
        1, Whole(1, maximum=MOST_ROWS), "", "Texts a prompt.",
        key="num_sequences", reason="one prompt has one such text",
    )  # fmt: skip
    # Length
    max_length: int | None = option(None, Whole(1, optional=True))
    max_new_tokens: int | None = option(None, Whole(1, optional=True), "length", "Most tokens a text.")
    min_length: int = option(0, Whole(0, optional=True))
    min_new_tokens: int | None = option(None, Whole(0, optional=True), "length", "No end of text before so many.")
    max_time: float | None = option(
        None, Number(0, above=True, optional=True), "length", "Seconds after which a text ends where it is."
    )
    # Sampling
    do_sample: bool = option(False, SWITCH, "", "Draw at random.")
    temperature: float = option(
        1.0, Number(0, optional=True), "sampling", "Below 1 the likely tokens gain, above 1 the unlikely.",
        useful=Number(0, above=True), reason=_DRAWN,
    )  # fmt: skip
    top_k: int | None = option(
        50, Whole(0, optional=True), "sampling", "Only so many of the likeliest tokens; 0: all.", reason=_DRAWN
    )
    top_p: float | None = option(
        1.0, Number(0, 1, above=True, optional=True), "sampling",
        "Only the likeliest tokens that together have this probability.", reason=_DRAWN,
    )  # fmt: skip
    min_p: float | None = option(
        None, Number(0, 1, optional=True), "sampling",
        "Only tokens of at least this share of the likeliest one's probability.", reason=_DRAWN,
    )  # fmt: skip
    typical_p: float | None = option(
        1.0, Number(0, 1, above=True, optional=True), "sampling",
        "Only the most typical tokens that together have this probability.", reason=_DRAWN,
    )  # fmt: skip
    epsilon_cutoff: float | None = option(
        0.0, Number(0, 1, below=True, optional=True), "sampling",
        "Only tokens of at least this probability.", reason=_DRAWN,
    )  # fmt: skip
    eta_cutoff: float | None = option(
        0.0, Number(0, 1, below=True, optional=True), "sampling",
        "Only tokens above a probability that falls with the entropy.", reason=_DRAWN,
    )  # fmt: skip
    # Beam search
    num_beams: int = option(1, Whole(1, maximum=MOST_ROWS), "beams", "Texts followed at once.", reason=_BEAM)
    length_penalty: float = option(
        1.0, Number(-50, 50), "beams",  # a million tokens to this power is still a number
        "Above 0 the search prefers longer texts, below 0 shorter ones.", reason=_BEAM,
    )  # fmt: skip
    early_stopping: bool | Literal["never"] = option(
        False, OneOf((True, False, "never")), "beams",
        "true: stop at num_beams finished texts; false: where better ones are unlikely; never: where impossible.",
        reason=_BEAM,
    )  # fmt: skip
    num_beam_groups: int = option(
        1, Whole(1), "beams", "Groups the beams are in; each avoids what the ones before it chose.",
        useful=Whole(2), reason="it belongs to a search in groups",
    )  # fmt: skip
    diversity_penalty: float = option(
        0.0, Number(0), "beams", "What a token costs a group for each earlier group that chose it.",
        useful=Number(0, above=True), reason="it keeps the groups of a search apart",
    )  # fmt: skip
    # Contrastive search, prompt lookup
    penalty_alpha: float | None = option(
        None, Number(0, 1, above=True, optional=True), "contrastive and lookup",
        "Weight against tokens that resemble the text so far.", reason="it weighs contrastive search",
    )  # fmt: skip
    prompt_lookup_num_tokens: int | None = option(
        None, Whole(1, optional=True), "contrastive and lookup",
        "Tokens guessed from the text so far and checked at once.", reason=_LOOKUP,
    )  # fmt: skip
    max_matching_ngram_size: int | None = option(
        None, Whole(1, optional=True), "contrastive and lookup", "Longest run of tokens looked up.", reason=_LOOKUP
    )
    # Penalties
    repetition_penalty: float = option(
        1.0, Number(0, above=True, optional=True), "penalties",
        "Above 1 tokens that the text has already become less likely.",
    )  # fmt: skip
    no_repeat_ngram_size: int = option(
        0, Whole(0, optional=True), "penalties", "No run of so many tokens twice; 0: any."
    )
    bad_words_ids: Sequence[Sequence[int]] | None = option(
        None, IdLists(), "penalties", "Words that are not to be written, after a blank or not.", key="bad_words"
    )
    suppress_tokens: Sequence[int] | None = option(None, Ids(), "penalties", "Token ids that are not to be written.")
    sequence_bias: SequenceBias | None = option(None, Biases())  # noqa: RUF009 - a field
    logits_processor: Sequence[LogitsProcessor] = option((), Functions())
    # Ends
    stop_strings: str | Sequence[str] | None = option(
        None, Texts(), "length", "The text ends with the first of these.", key="stop"
    )
    eos_token_id: int | Sequence[int] | None = option(EOT_ID, Ids(single=True))
    pad_token_id: int | None = option(None, Whole(0, optional=True))
    bos_token_id: int = option(EOT_ID, Whole(0))  # what an empty prompt starts from
    past_block_size: Literal["refuse", "slide"] = option(
        "refuse", OneOf(("refuse", "slide")), "length",
        "A text longer than the model's block_size: refuse, or slide the window.",
    )  # fmt: skip
    # Result
    return_dict_in_generate: bool = option(False, SWITCH)
    output_scores: bool = option(False, SWITCH)
    output_logits: bool = option(False, SWITCH)
    output_log_probs: bool = option(False, SWITCH)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        if isinstance(self.eos_token_id, Integral):
            return (int(self.eos_token_id),)
        return tuple(int(token_id) for token_id in self.eos_token_id)  # type: ignore[union-attr]

    @property
    def pad_id(self) -> int:
        """What fills finished rows: `pad_token_id`, else the first end of text, else 0."""
        return self.pad_token_id if self.pad_token_id is not None else next(iter(self.eos_ids), 0)

    @property
    def mode(self) -> Mode:
        if self.prompt_lookup_num_tokens is not None:
            return "prompt_lookup"
        if self.penalty_alpha is not None:
            return "contrastive"
        if self.num_beams > 1:
            return "group_beam" if self.num_beam_groups > 1 else "beam"
        return "sample" if self.do_sample else "greedy"

    @property
    def rows_per_prompt(self) -> int:
        """Rows decoded at once for each prompt."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences

    def total_length(self, prompt_length: int) -> int:
        """Most tokens of a row, its prompt included."""
        if self.max_new_tokens is not None:
            return prompt_length + self.max_new_tokens
        return self.max_length if self.max_length is not None else prompt_length + DEFAULT_NEW_TOKENS


OPTIONS = {row.name: Option(row.name, row.default, **row.metadata) for row in fields(GenerationOptions)}
# An argument of `generate` beside its options.
SEED = Option(
    "seed",
    None,
    Whole(0, maximum=LAST_SEED),
    "sampling",
    "The same seed gives the same text on the same device; text k of a prompt has seed + k.",
)
