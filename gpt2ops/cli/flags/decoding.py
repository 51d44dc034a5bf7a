"""The flags of `gpt2 generate` that say how to decode: one for each key of `DecodingSetting`, and back."""

import argparse
import re
from collections.abc import Callable, Collection
from typing import Any, get_args

from pydantic import ValidationError

from gpt2core.errors import UserError
from gpt2ops.params.decoding import DRAWS, ONE_EACH, STRATEGIES, DecodingSetting, flag_of
from gpt2ops.params.problems import lines_of

DEFAULT_NEW_TOKENS = 100
_GROUPS = {
    "length and end": ("max_new_tokens", "min_new_tokens", "max_time", "stop", "past_block_size"),
    "drawing at random (--decoding sample, beam-sample)": ("seed", *DRAWS),
    "beams (--decoding beam, beam-sample, group-beam)": (
        "num_beams",
        "length_penalty",
        "early_stopping",
        "num_beam_groups",
        "diversity_penalty",
    ),
    "contrastive search (and --top-k) and looking up the prompt": (
        "penalty_alpha",
        "prompt_lookup_num_tokens",
        "max_matching_ngram_size",
    ),
    "penalties": ("repetition_penalty", "no_repeat_ngram_size", "bad_words", "suppress_tokens"),
}
_VALUES = {"early_stopping": {"true": True, "false": False, "never": "never"}}


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    fields = DecodingSetting.model_fields
    parser.add_argument(
        "--decoding",
        choices=get_args(fields["decoding"].annotation),
        default=argparse.SUPPRESS,
        help="how to write (default: sample)",
    )
    parser.add_argument(
        "--num-sequences", type=int, default=argparse.SUPPRESS, metavar="N", help="texts a prompt (default: 1)"
    )
    for title, keys in _GROUPS.items():
        group = parser.add_argument_group(title)
        for key in keys:
            description = _as_help(key, str(fields[key].description))
            group.add_argument(
                flag_of(key), dest=key, default=argparse.SUPPRESS, help=description, **_reading(key, fields[key])
            )


def decoding_setting(arguments: argparse.Namespace) -> DecodingSetting:
    """What the flags say. Raises UserError, naming the flag, for what is out of range or does not belong together."""
    return parse_setting(given_flags(arguments))


def given_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys whose flags were given."""
    return {key: value for key, value in vars(arguments).items() if key in DecodingSetting.model_fields}


def parse_setting(values: dict[str, Any], keys: Collection[str] = ()) -> DecodingSetting:
    """A setting of these values, 100 tokens long unless they say otherwise.

    Raises UserError in words of flags, but for `keys`, which a file has given.
    """
    try:
        setting = DecodingSetting.model_validate({"max_new_tokens": DEFAULT_NEW_TOKENS, **values})
        setting.check()
    except ValidationError as error:
        raise UserError(in_flags(" ".join(lines_of(error, DecodingSetting)), keys)) from None
    except UserError as error:
        raise UserError(in_flags(str(error), keys)) from None
    return setting


def in_flags(message: str, keys: Collection[str] = ()) -> str:
    """The line with `--top-p (1.5)` for `top_p (1.5)`, but for `keys`; a name that is a word only before its value."""
    for key in DecodingSetting.model_fields.keys() - set(keys):
        after = "" if "_" in key else r"(?= \()"
        message = re.sub(rf"(?<![\w.-])(?<!mean ){key}\b{after}", flag_of(key), message)
    return message.replace(", or null", "")


def _reading(key: str, field: Any) -> dict[str, Any]:
    """How argparse reads the flag of a key."""
    if key in _VALUES:
        return {"type": _one_of(_VALUES[key]), "metavar": "|".join(_VALUES[key])}
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)]
    choices = get_args(kinds[0])
    if key in ONE_EACH:
        return {"type": choices[0], "action": "append", "metavar": "ID" if choices[0] is int else "TEXT"}
    if choices:
        return {"choices": choices}
    number = "N" if kinds[0] is int else "X"
    return {"type": _number_or_off(kinds[0]) if key in DRAWS[1:] else kinds[0], "metavar": number}


def _number_or_off(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text == "off" else kind(text)

    read.__name__ = f"{getattr(kind, '__name__', 'number')} or off"
    return read


def _one_of(values: dict[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in values:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(values)}")
        return values[text]

    return read


def _as_help(key: str, description: str) -> str:
    """The key's description as argparse's help, with the default of each strategy; YAML's null is called off."""
    text = re.sub(r"\bnull\b", "off", description).rstrip(".").replace("%", "%%")
    text = text[0].lower() + text[1:]
    strategies: dict[Any, list[str]] = {}
    for name, strategy in STRATEGIES.items():
        if strategy.keys.get(key) is not None:
            strategies.setdefault(strategy.keys[key], []).append(name)
    if len(strategies) == 1:
        return f"{text} (default: {next(iter(strategies))})"
    defaults = ", ".join(f"{value} for {' and '.join(names)}" for value, names in strategies.items())
    return f"{text} (default: {defaults})" if defaults else text
