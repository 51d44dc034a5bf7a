"""The model that writes the texts of `gpt2 generate`."""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gpt2core.data.examples.template import Template, answer_text, prompt_text
from gpt2core.decoding.packed.linear import Weights
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2ops.cli.flags.decoding import in_flags
from gpt2ops.params.decoding import DecodingSetting
from gpt2ops.sampling.texts import Text, with_weights, write_texts
from gpt2ops.training.initial_model import load_with_template


@dataclass(frozen=True)
class Writer:
    """A model with its tokenizer and limits."""

    model: Callable[[Tensor], Tensor]
    tokenizer: Tokenizer
    block_size: int
    fingerprint: str  # of the weights, 12 hex digits
    template: Template | None = None  # of a model that was trained on examples

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, as the model was trained to read it."""
        return self.tokenizer.encode(prompt_text(self.template, prompt))

    def write(
        self, prompts: list[list[int]], setting: DecodingSetting, seeds: list[int], **options: Any
    ) -> list[list[Text]]:
        """As `write_texts`; errors name the flags."""
        try:
            written = write_texts(self.model, prompts, setting, seeds, self.tokenizer, **options)
        except UserError as error:
            raise in_flags(error) from None
        return [[replace(text, text=answer_text(self.template, text.text)) for text in texts] for texts in written]

    def check_fits(self, prompt_length: int, setting: DecodingSetting) -> None:
        """Raises UserError where the text may exceed block_size and the window does not slide."""
        wanted = setting.max_new_tokens or 0
        room = self.block_size + 1 - max(1, prompt_length)
        if setting.past_block_size != "slide" and wanted > room:
            if room < 1:
                raise UserError(
                    f"a prompt of {prompt_length:,} tokens is longer than the model's block_size "
                    f"({self.block_size:,}); shorten it, or let the window slide (--past-block-size slide)."
                )
            raise UserError(
                f"a prompt of {max(1, prompt_length)} tokens and --max-new-tokens {wanted} do not fit into the model's "
                f"block_size ({self.block_size}); at most {room} fit, or let the window slide "
                "(--past-block-size slide)."
            )


def open_writer(arguments: argparse.Namespace) -> Writer:
    """The model of --model, its weights stored as --weights says, on the GPU where there is one."""
    model, template = load_with_template(arguments.model, "--model")
    known = fingerprint(model, arguments.weights)
    return Writer(with_weights(model, arguments.weights), Tokenizer(), model.config.block_size, known, template)


def fingerprint(model: GPT, weights: Weights) -> str:
    """12 hex digits of a hash of some of the weights and of the kind they are stored in."""
    sampled = torch.cat([part.detach().flatten() for part in (model.ln_f.weight, model.wte.weight[:16])])
    return hashlib.sha256(weights.encode() + sampled.float().numpy().tobytes()).hexdigest()[:12]
