"""The typed schema of params.yaml as a whole: what holds between its sections, and how the file is read."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError
from gpt2core.storage.bounds import read_whole
from gpt2ops.params.problems import user_error
from gpt2ops.params.recipes import DROP_RATES, recipe_of
from gpt2ops.params.sections import Data, Evaluate, Model, Register, Run, Sample, Section, Train
from gpt2ops.params.yaml_loader import MOST_BYTES, SettingsLoader
from gpt2ops.pipeline import paths


class Params(Section):
    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    sample: Sample = Sample()
    register_: Register = Field(Register(), alias="register")  # `register` is a method of pydantic's metaclass

    @model_validator(mode="before")
    @classmethod
    def _by_recipe(cls, values: Any) -> Any:
        """The one key outside of `train` that a recipe fills in."""
        recipe = recipe_of(values.get("train")) if isinstance(values, dict) else None
        if recipe is None or recipe not in DROP_RATES:
            return values
        model = values.get("model", {})
        if not isinstance(model, dict) or model.get("drop_rate") is not None:
            return values
        return {**values, "model": {**model, "drop_rate": DROP_RATES[recipe]}}

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.model.init == "scratch":
            block_size = GPTConfig.from_preset(self.model.preset, **self.model.overrides).block_size
            check_sequence_length(self.train.sequence_length, block_size)
        if self.data.format != "text" and self.train.sampler == "sliding":
            rule = "is for text, and {data.format} is {kind}"
            raise UserError(
                key="train.sampler", value="sliding", rule=rule, remedy="set it to shuffled", kind=self.data.format
            )
        if self.data.format == "text" and self.train.packing:
            rule = "is for examples, and {data.format} is text, whose sequences are full"
            raise UserError(key="train.packing", value=True, rule=rule, remedy="set it to false")
        share = self.train.batch_size % self.run.nproc_per_node
        if share:
            raise UserError(
                key="train.batch_size",
                value=self.train.batch_size,
                rule="must be a multiple of {run.nproc_per_node} ({processes})",
                remedy=f"try {self.train.batch_size - share or self.run.nproc_per_node}",
                processes=self.run.nproc_per_node,
            )
        per_device = self.train.batch_size // self.run.nproc_per_node
        micro = self.train.micro_batch_size
        if micro is not None and per_device % micro:
            rule = f"must divide the sequences a device and step ({per_device})"
            raise UserError(key="train.micro_batch_size", value=micro, rule=rule)
        return self


def check_sequence_length(sequence_length: int, block_size: int) -> None:
    """Raises UserError where a training sequence does not fit the model's positions."""
    if sequence_length > block_size:
        raise UserError(
            key="train.sequence_length",
            value=sequence_length,
            rule=f"must not exceed the model's block_size ({block_size})",
            remedy=f"set it to {block_size} or less",
        )


def load_params(path: Path = paths.PARAMS) -> Params:
    """Read and check a params file. Raises UserError with a line for each problem."""
    try:
        text = read_whole(path, 4 * MOST_BYTES).decode()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run this from the project's folder.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not valid UTF-8.") from None
    if len(text) > MOST_BYTES:
        raise UserError(f"{path} has {len(text):,} characters, more than settings can have ({MOST_BYTES:,}).")
    try:
        values = yaml.load(text, Loader=SettingsLoader)
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{path}: character {error.position} (U+{error.character:04X}) is not allowed in YAML."
        ) from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply.") from None
    except (ValueError, OverflowError) as error:  # a number of thousands of digits, a date that is none
        raise UserError(f"{path}: not valid YAML: {error}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise UserError(f"{path}, {where}: not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    return parse_params({} if values is None else values, source=str(path))


def parse_params(values: Any, source: str = "params") -> Params:
    """Check nested `values`. Raises UserError with a line for each problem, each naming its key."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise user_error(error, Params).spelled(source=source) from None
