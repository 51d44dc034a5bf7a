"""What params.yaml calls an argument of the library."""

from collections.abc import Mapping
from typing import Any

from gpt2core.errors import UserError
from gpt2ops.params.problems import FLAG_WORDS, YAML
from gpt2ops.params.schema import Params

# The section of a stage whose name is another; every stage has `run` and `model` too.
SECTIONS = {"download": "data", "tokenize": "data", "finetune": "train"}


def params_key(stage: str, argument: str) -> str:
    """`train.batch_size` for `batch_size` in the stage `finetune`; a name that no section of it has stays."""
    for name in (SECTIONS.get(stage, stage), "run", "model"):
        field = next((field for key, field in Params.model_fields.items() if name in (key, field.alias)), None)
        if field is not None and argument in field.annotation.model_fields:  # type: ignore[union-attr]
            return f"{name}.{argument}"
    return argument


def in_stage_words(stage: str, error: UserError, flags: Mapping[str, str]) -> UserError:
    """An error of the library in keys of params.yaml, or in the flags that set them where a command runs the stage."""

    def name(argument: str) -> str:
        key = params_key(stage, argument)
        return flags.get(key, key)

    return error.spelled(name, FLAG_WORDS if flags else YAML)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"batch_size": 16}}` -> `{"train.batch_size": 16}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
