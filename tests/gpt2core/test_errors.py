"""A user's error is data: each surface spells its names and values, and nobody edits a sentence."""

import pickle

import pytest

from gpt2core.errors import LONGEST_LINE, Problem, UserError, Words

YAML = Words(true="true", false="false", or_none=", or null", equals=": ")


def error() -> UserError:
    return UserError(
        key="top_k",
        value=True,
        rule="must be at least {least} for {mode}{or_none}",
        remedy="set {do_sample:True} or {past_block_size:slide}",
        least=2,
        mode="{braces} of a user",
    )


def test_the_library_names_its_arguments_as_python_does() -> None:
    assert str(error()) == (
        "top_k (True) must be at least 2 for {braces} of a user, or None; "
        'set do_sample=True or past_block_size="slide".'
    )


def test_each_surface_spells_names_and_values_and_the_last_one_counts() -> None:
    in_file = error().spelled(lambda name: f"sample.settings[1].{name}", YAML, source="params.yaml")
    assert str(in_file) == (
        "params.yaml: sample.settings[1].top_k (true) must be at least 2 for {braces} of a user, or null; "
        "set sample.settings[1].do_sample: true or sample.settings[1].past_block_size: slide."
    )
    flag = in_file.spelled(lambda key: "--" + key.rpartition(".")[2], Words(equals=" ", or_none=""))
    assert str(flag).startswith(
        "params.yaml: --top_k (True) must be at least 2 for {braces} of a user; set --do_sample"
    )


def test_several_problems_are_a_line_each_and_plain_lines_stay_as_they_are() -> None:
    several = UserError(
        "a file is missing.", Problem("is missing", "give it", "a.b"), Problem(": no", key="c", value="x")
    )
    assert str(several.spelled(str.upper)) == "a file is missing.\nA.B is missing; give it.\nC ('x'): no."
    assert str(pickle.loads(pickle.dumps(several))) == str(several)


@pytest.mark.parametrize(
    "value",
    ["line\nend", "\x1b[31m", "x" * 100_000, 10**5000, [[1] * 1000] * 1000],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_one_short_line_whatever_it_is(value: object) -> None:
    line = str(UserError(key="name", value=value, rule="is wrong"))
    assert line.isprintable()
    assert len(line) <= LONGEST_LINE
