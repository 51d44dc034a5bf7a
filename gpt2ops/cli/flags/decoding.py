"""The flags of `gpt2 generate` that say how to decode: one for each key of `DecodingSetting`, and back."""

import argparse
from collections.abc import Callable, Collection
from typing import Any, get_args

from pydantic import ValidationError

from gpt2core.decoding.options import Group
from gpt2core.decoding.rules import OneOf
from gpt2core.errors import UserError
from gpt2ops.params.decoding import DRAWS, KEYS, ONE_EACH, STRATEGIES, Decoding, DecodingSetting, flag_of, type_of
from gpt2ops.params.problems import FLAG_WORDS, user_error

DEFAULT_NEW_TOKENS = 100
_TITLES: dict[Group, str] = {
    "length": "length and end",
    "sampling": "drawing at random (--decoding sample, beam-sample)",
    "beams": "beams (--decoding beam, beam-sample, group-beam)",
    "contrastive and lookup": "contrastive search (and --top-k) and looking up the prompt",
    "penalties": "penalties",
}


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoding",
        choices=get_args(Decoding),
        default=argparse.SUPPRESS,
        help="how to write (default: sample)",
    )
    parser.add_argument(
        "--num-sequences", type=int, default=argparse.SUPPRESS, metavar="N", help="texts a prompt (default: 1)"
    )
    for name, title in _TITLES.items():
        group = parser.add_argument_group(title)
        for key in [key for key, row in KEYS.items() if row.group == name]:
            group.add_argument(flag_of(key), dest=key, default=argparse.SUPPRESS, help=_as_help(key), **_reading(key))


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
        return DecodingSetting.model_validate({"max_new_tokens": DEFAULT_NEW_TOKENS, **values})
    except ValidationError as error:
        problems = in_flags(user_error(error, DecodingSetting), keys).problems
        raise UserError(" ".join(map(str, problems))) from None


def in_flags(error: UserError, keys: Collection[str] = ()) -> UserError:
    """The error with flags for keys, but for `keys` and what lies in them."""
    return error.spelled(
        lambda key: flag_of(key) if key in DecodingSetting.model_fields and key not in keys else key, FLAG_WORDS
    )


def _reading(key: str) -> dict[str, Any]:
    """How argparse reads the flag of a key."""
    row = KEYS[key]
    kind = type_of(row)
    if key in ONE_EACH:
        (kind,) = get_args(kind)
        return {"type": kind, "action": "append", "metavar": "ID" if kind is int else "TEXT"}
    if isinstance(row.rule, OneOf):
        if all(isinstance(value, str) for value in row.rule.values):
            return {"choices": row.rule.values}
        words = {FLAG_WORDS.show(value): value for value in row.rule.values}
        return {"type": _one_of(words), "metavar": "|".join(words)}
    return {"type": _number_or_off(kind) if key in DRAWS[1:] else kind, "metavar": "N" if kind is int else "X"}


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


def _as_help(key: str) -> str:
    """The key's help as argparse takes it, with the default of each strategy."""
    text = KEYS[key].help.rstrip(".").replace("%", "%%")
    text = text[0].lower() + text[1:]
    strategies: dict[Any, list[str]] = {}
    for name, strategy in STRATEGIES.items():
        if strategy.keys.get(key) is not None:
            strategies.setdefault(strategy.keys[key], []).append(name)
    if len(strategies) == 1:
        return f"{text} (default: {next(iter(strategies))})"
    defaults = ", ".join(f"{value} for {' and '.join(names)}" for value, names in strategies.items())
    return f"{text} (default: {defaults})" if defaults else text
