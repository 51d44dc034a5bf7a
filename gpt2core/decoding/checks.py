"""Which generation options make sense, alone and together. An option at its default is never refused."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from reprlib import repr as short
from typing import Any, TypeGuard

from gpt2core.decoding.options import DEFAULT_NEW_TOKENS, GenerationOptions
from gpt2core.errors import UserError
from gpt2core.tokenizer import check_unicode

# Below it, logits divided by it overflow fp32.
MIN_TEMPERATURE = 1e-6
# Texts at once: lists of so many are made before a library says that there is no memory for them.
MOST_ROWS = 100_000
DEFAULTS = {field.name: field.default for field in fields(GenerationOptions)}


@dataclass(frozen=True)
class Whole:
    """A whole number of at least `minimum`; None where it is off."""

    minimum: int
    optional: bool = False
    maximum: int | None = None

    def refuse(self, name: str, value: Any) -> None:
        if value is None and self.optional:
            return
        upper = "" if self.maximum is None else f" and at most {self.maximum:,}"
        rule = f"must be a whole number of at least {self.minimum}{upper}{', or None' if self.optional else ''}"
        if not is_whole(value) or value < self.minimum or (self.maximum is not None and value > self.maximum):
            raise UserError(f"{name} ({short(value)}) {rule}.")


@dataclass(frozen=True)
class Number:
    """A finite number in a range; None where it is off."""

    minimum: float = -math.inf
    maximum: float = math.inf
    above: bool = False  # the minimum itself is outside
    below: bool = False  # the maximum itself is outside
    optional: bool = False

    def refuse(self, name: str, value: Any) -> None:
        if value is None and self.optional:
            return
        fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if fits:
            fits = value > self.minimum if self.above else value >= self.minimum
            fits = fits and (value < self.maximum if self.below else value <= self.maximum)
        if not fits:
            raise UserError(f"{name} ({value!r}) must be a {self._range()}{', or None' if self.optional else ''}.")

    def _range(self) -> str:
        bounds = []
        if self.minimum > -math.inf:
            bounds.append(f"{'above' if self.above else 'of at least'} {self.minimum:g}")
        if self.maximum < math.inf:
            bounds.append(f"{'below' if self.below else 'at most'} {self.maximum:g}")
        return " ".join(["number", " and ".join(bounds)]) if bounds else "finite number"


@dataclass(frozen=True)
class OneOf:
    values: tuple[Any, ...]

    def refuse(self, name: str, value: Any) -> None:
        # 0 and 1 equal False and True.
        if not any(value is known or (isinstance(known, str) and value == known) for known in self.values):
            raise UserError(f"{name} ({value!r}) must be one of {', '.join(map(repr, self.values))}.")


SWITCH = OneOf((True, False))
RULES: dict[str, Whole | Number | OneOf] = {
    "max_length": Whole(1, optional=True),
    "max_new_tokens": Whole(1, optional=True),
    "min_length": Whole(0, optional=True),
    "min_new_tokens": Whole(0, optional=True),
    "max_time": Number(0, above=True, optional=True),
    "do_sample": SWITCH,
    "num_beams": Whole(1, maximum=MOST_ROWS),
    "num_beam_groups": Whole(1),
    "diversity_penalty": Number(0),
    "length_penalty": Number(-50, 50),  # a million tokens to this power is still a number
    "early_stopping": OneOf((True, False, "never")),
    "penalty_alpha": Number(0, 1, above=True, optional=True),
    "prompt_lookup_num_tokens": Whole(1, optional=True),
    "max_matching_ngram_size": Whole(1, optional=True),
    "temperature": Number(0, optional=True),
    "top_k": Whole(0, optional=True),
    "top_p": Number(0, 1, above=True, optional=True),
    "min_p": Number(0, 1, optional=True),
    "typical_p": Number(0, 1, above=True, optional=True),
    "epsilon_cutoff": Number(0, 1, below=True, optional=True),
    "eta_cutoff": Number(0, 1, below=True, optional=True),
    "repetition_penalty": Number(0, above=True, optional=True),
    "no_repeat_ngram_size": Whole(0, optional=True),
    "pad_token_id": Whole(0, optional=True),
    "bos_token_id": Whole(0),
    "past_block_size": OneOf(("refuse", "slide")),
    "num_return_sequences": Whole(1, maximum=MOST_ROWS),
    "return_dict_in_generate": SWITCH,
    "output_scores": SWITCH,
    "output_logits": SWITCH,
    "output_log_probs": SWITCH,
}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
# At these values they leave the distribution as it is. A temperature of 0 asks for the likeliest token.
OFF = {"temperature": (1, 0), "top_k": (0,), "top_p": (1,), "min_p": (0,), "typical_p": (1,)}


def check_options(options: GenerationOptions) -> None:
    """Raises UserError, in one line, for a value out of range, or a combination in which an option has no effect."""
    for name, rule in RULES.items():
        rule.refuse(name, getattr(options, name))
    _check_ids(options)
    _check_stop_strings(options.stop_strings)
    _check_processors(options.logits_processor)
    _check_lengths(options)
    _check_sampling(options)
    _check_beams(options)
    _check_strategies(options)
    _check_results(options)


def check_token_ids(options: GenerationOptions, vocab_size: int) -> None:
    """Raises UserError for a token id that a model of `vocab_size` tokens does not know, were it not a default."""
    given = {
        "eos_token_id": options.eos_ids,
        "pad_token_id": () if options.pad_token_id is None else (options.pad_token_id,),
        "bos_token_id": (options.bos_token_id,),
        "suppress_tokens": options.suppress_tokens or (),
        "bad_words_ids": [token_id for word in options.bad_words_ids or () for token_id in word],
    }
    for name, token_ids in given.items():
        unknown = [token_id for token_id in token_ids if token_id >= vocab_size]
        if unknown and getattr(options, name) != DEFAULTS[name]:
            raise UserError(f"{name}: token id {unknown[0]} is outside the model's vocabulary (0 to {vocab_size - 1}).")


def is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_ids(options: GenerationOptions) -> None:
    eos = options.eos_token_id
    if eos is not None and not _is_id(eos) and not _are_ids(eos):
        raise UserError(f"eos_token_id ({short(eos)}) must be a token id, several, or None for a text without end.")
    suppressed = options.suppress_tokens
    if suppressed is not None and suppressed != [] and not _are_ids(suppressed):
        raise UserError(f"suppress_tokens ({short(suppressed)}) must be a list of token ids.")
    words = options.bad_words_ids
    if words is not None:
        if not _is_list(words) or not words or not all(map(_are_ids, words)):
            raise UserError(f"bad_words_ids ({short(words)}) must be a list of lists of token ids, none of them empty.")
        if all(len(word) == 1 and word[0] in options.eos_ids for word in words):
            raise UserError(
                f"bad_words_ids ({short(words)}) holds only the end of text, which is no word; "
                "for longer texts set min_new_tokens, for endless ones eos_token_id=None."
            )
    if options.sequence_bias is not None:
        _check_sequence_bias(options.sequence_bias)


def _check_sequence_bias(biases: Any) -> None:
    pairs = list(biases.items()) if isinstance(biases, Mapping) else biases
    well_formed = _is_list(pairs) and pairs and all(_is_list(pair) and len(pair) == 2 for pair in pairs)
    if not well_formed or not all(_are_ids(ids) for ids, _ in pairs):
        raise UserError(
            f"sequence_bias ({short(biases)}) must map tuples of token ids to numbers, or list pairs of both."
        )
    for ids, bias in pairs:
        # -inf forbids a sequence; inf would leave no distribution.
        if not isinstance(bias, Real) or isinstance(bias, bool) or not bias < math.inf:
            raise UserError(f"sequence_bias of {tuple(ids)} ({bias!r}) must be a finite number, or -inf to forbid it.")


def _check_stop_strings(stop_strings: Any) -> None:
    if stop_strings is None:
        return
    strings = [stop_strings] if isinstance(stop_strings, str) else stop_strings
    if not _is_list(strings) or not strings or not all(isinstance(string, str) and string for string in strings):
        raise UserError(f"stop_strings ({short(stop_strings)}) must be a text or a list of texts, none of them empty.")
    for string in strings:
        try:
            check_unicode(string)
        except UserError as error:
            raise UserError(f"stop_strings ({short(string)}): {error}") from None


def _check_processors(functions: Any) -> None:
    listed = functions if _is_list(functions) else [functions]
    for function in listed:
        if not callable(function):
            raise UserError(f"logits_processor ({function!r}) must be a function (ids, logits) -> logits, or several.")


def _check_lengths(options: GenerationOptions) -> None:
    least, most = options.min_new_tokens, options.max_new_tokens
    if most is None and options.max_length is None:
        most = DEFAULT_NEW_TOKENS
    if least is not None and most is not None and least > most:
        raise UserError(f"min_new_tokens ({least}) is above max_new_tokens ({most}); raise max_new_tokens.")
    for name in ("min_length", "min_new_tokens"):
        value = getattr(options, name)
        if options.max_new_tokens is None and options.max_length is not None and (value or 0) > options.max_length:
            raise UserError(f"{name} ({value}) is above max_length ({options.max_length}); raise max_length.")


def _check_sampling(options: GenerationOptions) -> None:
    if options.do_sample:
        if options.temperature is not None and options.temperature < MIN_TEMPERATURE:
            raise UserError(
                f"temperature ({options.temperature:g}) must be at least {MIN_TEMPERATURE:g} to sample; "
                "for the likeliest token use greedy decoding (do_sample=False)."
            )
        return
    for name in SAMPLING:
        value = getattr(options, name)
        if value is None or value == DEFAULTS[name] or value in OFF.get(name, ()):
            continue
        if name == "top_k" and options.penalty_alpha is not None:
            continue
        raise UserError(f"{name} ({value:g}) has an effect only when sampling; set do_sample=True or leave it out.")


def _check_beams(options: GenerationOptions) -> None:
    beams, groups, copies = options.num_beams, options.num_beam_groups, options.num_return_sequences
    if beams == 1:
        for name in ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty"):
            value = getattr(options, name)
            if value != DEFAULTS[name]:
                raise UserError(f"{name} ({value}) belongs to beam search; set num_beams above 1 or leave it out.")
        return
    if copies > beams:
        raise UserError(f"num_return_sequences ({copies}) is above num_beams ({beams}), which are all there is.")
    if groups == 1:
        if options.diversity_penalty:
            raise UserError(
                f"diversity_penalty ({options.diversity_penalty:g}) tells groups of beams apart; "
                "set num_beam_groups above 1 or leave it out."
            )
        return
    if beams % groups:
        raise UserError(f"num_beams ({beams}) must be a multiple of num_beam_groups ({groups}).")
    if not options.diversity_penalty:
        raise UserError(f"num_beam_groups ({groups}) would all find the same texts; set diversity_penalty above 0.")
    if options.do_sample:
        raise UserError("a search in groups of beams draws nothing; leave out do_sample or num_beam_groups.")


def _check_strategies(options: GenerationOptions) -> None:
    contrastive, lookup = options.penalty_alpha is not None, options.prompt_lookup_num_tokens is not None
    if contrastive:
        if lookup:
            raise UserError("penalty_alpha and prompt_lookup_num_tokens are two ways of decoding; leave one out.")
        if options.do_sample:
            raise UserError("contrastive search (penalty_alpha) draws nothing; leave out do_sample or penalty_alpha.")
        if options.top_k is None or options.top_k < 2:
            raise UserError(
                f"top_k ({options.top_k}) must be at least 2 for contrastive search (penalty_alpha), "
                "which chooses among the likeliest tokens."
            )
    if (contrastive or lookup) and options.num_beams > 1:
        name = "penalty_alpha" if contrastive else "prompt_lookup_num_tokens"
        raise UserError(f"{name} follows one text, not beams; leave out num_beams or {name}.")
    if options.max_matching_ngram_size is not None and not lookup:
        raise UserError(
            "max_matching_ngram_size belongs to prompt lookup; set prompt_lookup_num_tokens or leave it out."
        )
    copies = options.num_return_sequences
    if copies > 1 and options.num_beams == 1:
        if lookup:
            raise UserError(f"prompt lookup gives one text, not {copies} num_return_sequences; leave one of them out.")
        if contrastive:
            raise UserError(f"contrastive search gives one text, not {copies} num_return_sequences.")
        if not options.do_sample:
            raise UserError("greedy decoding gives one text; set do_sample or num_beams for several.")


def _check_results(options: GenerationOptions) -> None:
    for name in ("output_scores", "output_logits", "output_log_probs"):
        if getattr(options, name) and not options.return_dict_in_generate:
            raise UserError(f"{name} needs return_dict_in_generate=True: a tensor of tokens has no place for it.")


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_id(value: object) -> bool:
    return is_whole(value) and value >= 0


def _are_ids(value: Any) -> bool:
    return _is_list(value) and len(value) > 0 and all(map(_is_id, value))
