"""The model a run starts from: new weights by seed, released ones, a directory, or a registered model."""

from pathlib import Path

import torch

from gpt2core.config import GPT2_VOCAB_SIZE, GPTConfig
from gpt2core.data.examples.template import Template, template_of
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.storage.files import read_json, sha256_file
from gpt2core.storage.hf import RELEASED, WEIGHTS
from gpt2ops.params.schema import Params
from gpt2ops.pipeline import paths


def initial_model(params: Params) -> GPT:
    """The model to start from on the CPU, its dropout as params say. Raises UserError if it is not available."""
    torch.manual_seed(params.run.seed)
    if params.model.init == "scratch":
        return GPT(GPTConfig.from_preset(params.model.preset, **params.model.overrides))
    model = load_model(params.model.init, "model.init")
    if params.model.drop_rate is not None:
        model.set_drop_rate(params.model.drop_rate)
    return model


def load_model(name: str, key: str) -> GPT:
    """The model `name`, the value of setting `key`. Raises UserError if it is missing or has another vocabulary."""
    return load_with_template(name, key)[0]


def load_with_template(name: str, key: str) -> tuple[GPT, Template | None]:
    """As `load_model`, with the template of the examples that the model was trained on, None for text."""
    try:
        directory = resolve_model(name)
        if directory not in RELEASED and not Path(directory).is_dir():
            rule = f": no such folder, nor one of {', '.join(RELEASED)} or models:/NAME@ALIAS"
            raise UserError(key=key, value=name, rule=rule)
        model = GPT.from_pretrained(directory)
    except UserError as error:
        raise error.spelled(lambda argument: key if argument in ("uri", "name_or_directory") else argument) from None
    if model.config.vocab_size != GPT2_VOCAB_SIZE:
        raise UserError(
            key=key,
            value=name,
            rule=f": vocab_size is {model.config.vocab_size}, but GPT-2's tokenizer has {GPT2_VOCAB_SIZE} tokens",
            remedy="choose a model that was made with that tokenizer",
        )
    return model, template_of(Path(directory))


def initial_weights_sha256(params: Params) -> str | None:
    """The hash of the weights' file that the run starts at: a link to a registered version with these weights.

    None for new and released weights, and for weights in several files.
    """
    if params.model.init == "scratch" or params.model.init in RELEASED:
        return None
    weights = Path(resolve_model(params.model.init)) / WEIGHTS
    return sha256_file(weights) if weights.is_file() else None


def best_model() -> GPT:
    """The best model of stage finetune. Raises UserError as `check_best_model`."""
    check_best_model()
    return GPT.from_pretrained(paths.BEST_MODEL)


def check_best_model() -> None:
    """Raises UserError where the stage finetune has not run, or models/best has not the weights that it wrote."""
    weights = paths.BEST_MODEL / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{weights} is missing: run the stage finetune first (`dvc repro finetune`).")
    try:
        written = read_json(paths.RUN).get("weights_sha256")  # earlier versions kept none
    except (OSError, ValueError, AttributeError):
        written = None
    if written is not None and sha256_file(weights) != written:
        raise UserError(
            f"{weights} is not what its run wrote (sha256): the file, or DVC's copy of it, is damaged; `gpt2 verify` "
            "says which, and what to do."
        )


def resolve_model(name: str) -> str:
    """The directory of a registered model, `models:/NAME@ALIAS`; other names are returned as they are."""
    if name.startswith("models:/"):
        from gpt2ops.registry.download import registered_model_directory

        return str(registered_model_directory(name))
    return name
