"""The flow's parameters are the schema of params.yaml, every key optional."""

import inspect
import json
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.engine.overrides import TrainOverrides, check_merged, parse_overrides
from flows.fine_tune import fine_tune, main
from gpt2core.errors import UserError
from gpt2ops.params.schema import Params


def submit(parameters: dict[str, Any]) -> None:
    """What Prefect's server does with the parameters of a run."""
    validate(parameters, fine_tune.parameters.model_dump(), raise_on_error=True)


def test_the_flow_has_a_parameter_for_each_section() -> None:
    sections = [field.alias or name for name, field in Params.model_fields.items()]
    assert list(inspect.signature(fine_tune.fn).parameters) == sections


def test_only_what_was_given_is_overridden() -> None:
    given = TrainOverrides.model_validate({"learning_rate": 1e-4, "stop": {"max_steps": None, "max_epochs": 2}})
    assert given.values() == {"learning_rate": 1e-4, "stop": {"max_steps": None, "max_epochs": 2.0}}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"train": {"learning_rate": 1e-4}, "run": {"name": None}},
        {"train": {"eval_interval": "epoch", "stop": {"target_loss": None}}},
        {"data": {"split": {"train": 0.7, "val": 0.2, "test": 0.1}}, "register": {"gate": {"max_perplexity": 40}}},
        {"sample": {"prompts": ["A", ""]}},
        {"train": {"resume": False}, "model": {"qkv_bias": None}},
        {"train": {"recipe": "memorise", "learning_rate": None, "schedule": None, "batch_size": None}},
    ],
)
def test_partial_overrides_are_admitted_at_submission_and_reach_the_flow(parameters: dict[str, Any]) -> None:
    submit(parameters)
    sections = fine_tune.validate_parameters(parameters)
    arrived = {name: section.values() for name, section in sections.items() if section and section.values()}
    assert arrived == parameters


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"train": {"learning_rat": 1e-4}}, r"'train'.*'learning_rat' is not one of.*'learning_rate'"),
        ({"train": {"stop": {"patienc": 3}}}, r"'train.stop'.*'patienc' is not one of.*'patience'"),
        ({"train": {"learning_rate": -1}}, r"'train.learning_rate'.*-1"),
        ({"train": {"batch_size": "many"}}, r"'train.batch_size'.*many"),
        ({"train": {"optimizer": "sgd"}}, r"'train.optimizer'.*'sgd' is not one of"),
        ({"data": {"split": {"train": 2}}}, r"'data.split.train'"),
        ({"train": {"resume": "maybe"}}, r"'train.resume'.*'maybe' is not one of \[True, False\]"),
    ],
)
def test_a_wrong_key_or_value_is_refused_at_submission_by_name(parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        submit(parameters)


def test_nothing_is_filled_in_from_the_form() -> None:
    """A default in the schema would be sent along by Prefect's form, and override params.yaml."""

    def defaults(node: Any) -> list[Any]:
        if isinstance(node, dict):
            own = [node["default"]] if node.get("default") not in (None, {}) else []
            return own + [found for value in node.values() for found in defaults(value)]
        return [found for value in node for found in defaults(value)] if isinstance(node, list) else []

    schema = fine_tune.parameters.model_dump()
    assert defaults(schema) == []
    assert '"type": "boolean"' not in json.dumps(schema)  # its switch is sent as `false` when nobody has touched it


def test_assignments_become_nested_values() -> None:
    assert parse_overrides(["train.learning_rate=1e-4", "train.stop.max_steps=null", "run.name=a b"]) == {
        "train": {"learning_rate": 1e-4, "stop": {"max_steps": None}},
        "run": {"name": "a b"},
    }


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.learning_rat=1", "unknown key train.learning_rat; did you mean learning_rate?"),
        ("trian.batch_size=1", "unknown key trian; did you mean train?"),
        ("train.batch_size=0", "train.batch_size (0): input should be greater than or equal to 1."),
        ("train.batch_size", "'train.batch_size' is not an override; write section.key=value"),
        ("run.name={", "run.name: '{' is not a value"),
    ],
)
def test_a_wrong_assignment_is_one_clear_line(assignment: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_overrides([assignment])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_sections_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"train.sequence_length \(999\) must not exceed the model's block_size \(64\)"):
        check_merged(Params(), {"train": {"sequence_length": 999}, "model": {"block_size": 64}})


def test_the_command_ends_with_2_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--set", "train.learning_rat=1"]) == 2
    assert capsys.readouterr().err == "fine-tune: error: unknown key train.learning_rat; did you mean learning_rate?\n"
