"""One table of decoding options: every surface refuses the same values, each in its own words, and takes the others."""

import ast
from pathlib import Path
from typing import Any, get_args

import pytest
from mlflow.exceptions import MlflowException

from gpt2core.decoding.generation import parse_options
from gpt2core.decoding.options import SEED, Option
from gpt2core.decoding.rules import Ids, Number, OneOf, Whole
from gpt2core.errors import UserError
from gpt2ops.app.page.fields import in_labels, label_of, read_setting
from gpt2ops.cli.flags.decoding import decoding_setting
from gpt2ops.cli.main import build_parser
from gpt2ops.params.decoding import DRAWS, KEYS, ONE_EACH, STRATEGIES, DecodingSetting, flag_of, type_of
from gpt2ops.params.problems import FLAG_WORDS
from gpt2ops.params.schema import parse_params
from gpt2ops.registry import text_model

ROOT = Path(__file__).parents[3]


def decoding_of(key: str) -> str:
    """A strategy that has the key."""
    return next((name for name, strategy in STRATEGIES.items() if key in strategy.keys), "sample")


def wrong_value(row: Option) -> Any:
    match row.rule:
        case Whole(minimum):
            return minimum - 1
        case Number(minimum):
            return minimum - 0.5
        case OneOf():
            return "nonsense"
        case Ids():
            return [-1]
    return [""]


def right_value(row: Option) -> Any:
    match row.useful or row.rule:
        case Whole(minimum):
            return minimum
        case Number(minimum, maximum):
            return (minimum + min(maximum, 1.0)) / 2
        case OneOf(values):
            return values[0]
        case Ids():
            return [1]
    return ["x"]


def flags(key: str, value: Any) -> list[str]:
    values = value if key in ONE_EACH else [value]
    return ["generate", f"--decoding={decoding_of(key)}", *(f"{flag_of(key)}={FLAG_WORDS.show(one)}" for one in values)]


def as_typed(key: str, value: Any) -> str:
    parts = value if key in ONE_EACH else [value]
    return ("," if isinstance(KEYS[key].rule, Ids) else "\n").join(map(FLAG_WORDS.show, parts))


@pytest.mark.parametrize("key", KEYS)
def test_the_library_refuses_a_wrong_value_by_its_own_name(key: str) -> None:
    row = KEYS[key]
    if row is SEED or key == "bad_words":
        pytest.skip("no option of generate takes it as it is")
    with pytest.raises(UserError, match=rf"^{row.name} \("):
        parse_options({row.name: wrong_value(row)})


@pytest.mark.parametrize("key", KEYS)
def test_params_yaml_refuses_a_wrong_value_by_its_key(key: str) -> None:
    setting = {"name": "a", "decoding": decoding_of(key), key: wrong_value(KEYS[key])}
    with pytest.raises(UserError) as caught:
        parse_params({"sample": {"settings": [setting]}}, source="params.yaml")
    assert str(caught.value).startswith(f"params.yaml: sample.settings[0].{key} (")


@pytest.mark.parametrize("key", KEYS)
def test_a_flag_with_a_wrong_value_is_named(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((UserError, SystemExit)) as caught:
        decoding_setting(build_parser("generate").parse_args(flags(key, wrong_value(KEYS[key]))))
    said = capsys.readouterr().err if caught.type is SystemExit else str(caught.value)  # argparse knows the choices
    assert f"{flag_of(key)}: " in said or said.startswith(f"{flag_of(key)} (")


@pytest.mark.parametrize("key", [key for key, row in KEYS.items() if type_of(row) != list[str]])
def test_the_page_refuses_a_wrong_value_by_its_label(key: str) -> None:
    decoding = decoding_of(key)
    with pytest.raises(UserError) as caught:
        read_setting(decoding, {key: as_typed(key, wrong_value(KEYS[key]))})
    assert str(in_labels(caught.value)).startswith(f"{label_of(key)} (")


@pytest.mark.parametrize("name", [*text_model.TYPES, *text_model.LISTS])
def test_the_server_refuses_a_wrong_value_by_its_parameter(name: str) -> None:
    row = next((row for key, row in KEYS.items() if name in (key, row.name)), None)
    value = "yes" if row is None else wrong_value(row)
    with pytest.raises(MlflowException, match=f"^{name} ") as caught:
        text_model.TextModel().predict(None, {"prompt": ["a"]}, {name: value})
    assert "None" not in str(caught.value)


@pytest.mark.parametrize("key", KEYS)
def test_a_right_value_is_taken_by_every_surface(key: str) -> None:
    row, decoding = KEYS[key], decoding_of(key)
    value = right_value(row)
    setting = DecodingSetting.model_validate({"decoding": decoding, "max_new_tokens": 100, key: value})
    parse_options(setting.options())
    served = text_model.options_of(
        {
            name: FLAG_WORDS.show(given) if name == "early_stopping" else given
            for name, given in setting.options().items()
        }
    )
    parse_options(served)
    parse_params({"sample": {"settings": [{"name": "a", "decoding": decoding, key: value}]}})
    by_flag = decoding_setting(build_parser("generate").parse_args(flags(key, value)))
    assert by_flag.options() == setting.options()
    assert getattr(by_flag, key) == getattr(setting, key) == value
    if key != "seed":  # which the page has only where something is drawn
        assert getattr(read_setting(decoding, {key: as_typed(key, value)}), key) == value


def test_the_kinds_of_keys_and_parameters_follow_the_table() -> None:
    types = {key: next(iter(get_args(DecodingSetting.model_fields[key].annotation))) for key in KEYS}
    assert (types["max_new_tokens"], types["top_p"], types["stop"]) == (int, float, list[str])
    assert (types["suppress_tokens"], types["bad_words"]) == (list[int], list[str])
    assert DRAWS == ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
    assert text_model.TYPES["early_stopping"] == "string"
    assert text_model.TYPES["do_sample"] == "boolean"
    assert text_model.LISTS == {"bad_words": "string", "suppress_tokens": "long", "stop_strings": "string"}


# They replace a path by the model's name or the file's address, since the path is of this machine or temporary.
PATHS_ONLY = {"gpt2ops/app/serving/models.py"}


def test_no_surface_edits_the_sentence_of_an_error() -> None:
    found = set()
    for file in [
        file for package in ("gpt2core", "gpt2ops", "tasks", "flows") for file in (ROOT / package).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                target = ast.unparse(node.func.value) + "".join(map(ast.unparse, node.args))
                if node.func.attr in ("replace", "sub", "removeprefix") and ("error)" in target or "message" in target):
                    found.add(file.relative_to(ROOT).as_posix())
    assert found == PATHS_ONLY
