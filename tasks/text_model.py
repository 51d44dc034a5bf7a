"""The registered model `gpt2-text`: prompt in, text out. MLflow keeps this file and `gpt2core` with the weights.

It is run by MLflow in processes where the project is not installed: nothing of `tasks` may be imported here.
"""

from typing import Any

import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 100,
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.95,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "seed": None,
}
SAMPLING = ("temperature", "top_k", "top_p")


class TextModel(PythonModel):
    """GPT-2 over text. A row's text depends on its prompt and the parameters only, not on the other rows."""

    def load_context(self, context: Any) -> None:
        from gpt2core import GPT, Tokenizer
        from gpt2core.runtime import pick_device

        self.device = pick_device("auto")
        self.model = GPT.from_pretrained(context.artifacts["model"]).to(self.device)
        self.tokenizer = Tokenizer()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[str]:
        """The prompts of the column `prompt`, each continued. Raises MlflowException (HTTP 400) for bad options."""
        from mlflow.exceptions import MlflowException

        options = {**DEFAULTS, **(params or {})}
        try:
            return [self._continue(str(prompt), options) for prompt in model_input["prompt"]]
        except ValueError as error:  # gpt2core's UserError
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _continue(self, prompt: str, options: dict[str, Any]) -> str:
        import torch

        from gpt2core import generate

        block_size = self.model.config.block_size
        room = block_size - options["max_new_tokens"]
        if room < 1:
            raise ValueError(
                f"max_new_tokens ({options['max_new_tokens']}) must be below the model's {block_size} positions."
            )
        prompt_ids = self.tokenizer.encode(prompt)
        seen = (prompt_ids or [self.tokenizer.eot_id])[-room:]
        if not options["do_sample"]:  # MLflow fills in the defaults of sampling too
            options = {key: value for key, value in options.items() if key not in SAMPLING}
        output = generate(self.model, torch.tensor([seen], device=self.device), **options)
        new_ids = output[0, len(seen) :].tolist()
        if new_ids and new_ids[-1] == self.tokenizer.eot_id:
            new_ids.pop()
        return self.tokenizer.decode(prompt_ids + new_ids)


def signature() -> ModelSignature:
    """A column `prompt` of texts in, a list of texts out; the options are typed parameters."""
    types = {
        "max_new_tokens": "long",
        "do_sample": "boolean",
        "temperature": "double",
        "top_k": "long",
        "top_p": "double",
        "num_beams": "long",
        "repetition_penalty": "double",
        "no_repeat_ngram_size": "long",
        "seed": "long",
    }
    return ModelSignature(
        Schema([ColSpec("string", "prompt")]),
        Schema([ColSpec("string")]),
        ParamSchema([ParamSpec(name, kind, DEFAULTS[name]) for name, kind in types.items()]),
    )


set_model(TextModel())
