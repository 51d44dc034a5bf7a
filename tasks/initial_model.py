"""The model a run starts from: new weights by seed, released ones, a directory, or a registered model."""

import torch

from gpt2core.config import GPTConfig
from gpt2core.model import GPT
from tasks.params import Params


def initial_model(params: Params) -> GPT:
    """The model to start from on the CPU, its dropout as params say. Raises UserError where it is not to be had."""
    torch.manual_seed(params.run.seed)
    if params.model.init == "scratch":
        return GPT(GPTConfig.from_preset(params.model.preset, **params.model.overrides))
    model = GPT.from_pretrained(resolve_model(params.model.init))
    if params.model.drop_rate is not None:
        model.set_drop_rate(params.model.drop_rate)
    return model


def resolve_model(name: str) -> str:
    """The directory of a registered model, `models:/NAME@ALIAS`; anything else is left to `GPT.from_pretrained`."""
    if name.startswith("models:/"):
        from tasks.tracking import registered_model_directory

        return str(registered_model_directory(name))
    return name
