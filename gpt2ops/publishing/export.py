"""Exports a model as a Hugging Face directory (weights, tokenizer, configs, card) and checks it in other runtimes."""

from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2core.data.examples.template import template_of
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.storage.files import read_json, replaced_directory, write_json, write_text
from gpt2core.storage.hf import find_weights
from gpt2core.tokenizer import Tokenizer
from gpt2ops.params.decoding import STRATEGIES
from gpt2ops.publishing.model_card import model_card
from gpt2ops.publishing.model_facts import ModelFacts, gather_facts
from gpt2ops.publishing.runtime_checks import Check, check_export
from gpt2ops.training.initial_model import load_model, resolve_model

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Export:
    directory: Path
    facts: ModelFacts
    checks: list[Check]

    @property
    def files(self) -> list[tuple[str, int]]:
        """Names with sizes in bytes."""
        return [(file.name, file.stat().st_size) for file in sorted(self.directory.iterdir())]


def export_model(
    model: str,
    directory: Path,
    *,
    dtype: str = "fp32",
    licence: str | None = None,
    language: str | None = None,
    repo_id: str | None = None,
) -> Export:
    """Write `model` (a directory, a released size, models:/NAME@ALIAS) to `directory`, after all checks have passed.

    Raises UserError, with nothing written, if there is no such model or another runtime gives other results.
    """
    loaded = load_model(model, "--model")
    source = find_weights(resolve_model(model))
    facts = gather_facts(model, source, loaded.config)
    card = model_card(facts, repo_id=repo_id or directory.name, licence=licence, language=language, dtype=dtype)
    with replaced_directory(directory) as partial:
        write_files(loaded, partial, DTYPES[dtype])
        if template := template_of(source):
            template.save(partial)
        write_text(partial / "README.md", card)
        checks = check_export(partial)
    return Export(directory, facts, checks)


def write_files(model: GPT, directory: Path, dtype: torch.dtype) -> None:
    """Weights, config, generation config and tokenizer. Raises UserError if a weight is out of range for `dtype`."""
    largest = max(float(parameter.detach().abs().max()) for parameter in model.parameters())
    if largest > torch.finfo(dtype).max:
        raise UserError(f"a weight is {largest:.3g}, too large for {dtype}; export as bf16 or fp32.")
    model.save_pretrained(directory, dtype)
    # safetensors writes mode 0600; give it the mode of the other files.
    (directory / "model.safetensors").chmod((directory / "config.json").stat().st_mode)
    Tokenizer().save(directory)
    tokenizer_config = read_json(directory / "tokenizer_config.json")
    write_json(directory / "tokenizer_config.json", {**tokenizer_config, "model_max_length": model.config.block_size})
    generation = read_json(directory / "generation_config.json")
    # The defaults of `gpt2 generate`.
    sampling = {key: STRATEGIES["sample"].keys[key] for key in ("temperature", "top_k", "top_p")}
    write_json(directory / "generation_config.json", {**generation, "do_sample": True, **sampling})
