"""What params.yaml calls an argument of the library."""

from gpt2core.errors import UserError
from gpt2ops.params.problems import YAML
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


def in_params_words(stage: str, error: UserError) -> UserError:
    """An error of the library in the words of params.yaml."""
    return error.spelled(lambda argument: params_key(stage, argument), YAML)
