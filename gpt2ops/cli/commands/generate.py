"""`gpt2 generate`: prompts in, texts out."""

import argparse
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2core.decoding.packed.linear import Weights
from gpt2core.decoding.streaming import PieceWriter
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2ops.cli.flags.decoding import decoding_setting, in_flags
from gpt2ops.cli.generation.prompts import prompt_file, read_prompt
from gpt2ops.cli.output import as_line, put
from gpt2ops.params.decoding import STRATEGIES, DecodingSetting
from gpt2ops.sampling.texts import Text, with_weights, write_texts
from gpt2ops.training.initial_model import load_model

SEED_LIMIT = 2**32


@dataclass(frozen=True)
class Writer:
    """A model with what goes with it."""

    model: Callable[[Tensor], Tensor]
    tokenizer: Tokenizer
    block_size: int
    fingerprint: str  # of the weights

    def write(
        self, prompts: list[list[int]], setting: DecodingSetting, seeds: list[int], **options: Any
    ) -> list[list[Text]]:
        """`write_texts`, with its mistakes in words of flags."""
        try:
            return write_texts(self.model, prompts, setting, seeds, self.tokenizer, **options)
        except UserError as error:
            raise in_flags(error) from None

    def check_fits(self, prompt_length: int, setting: DecodingSetting) -> None:
        """Raises UserError where a text may leave the model's positions and the window is not to slide."""
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


def run(arguments: argparse.Namespace) -> None:
    """Write the texts to standard output or --output. Raises UserError for a prompt, model or option that is wrong."""
    setting = decoding_setting(arguments)
    if (prompt_file(arguments) or "").endswith(".jsonl"):
        from gpt2ops.cli.generation.prompt_lines import answer_lines

        answer_lines(arguments, open_writer)
        return
    for flag, value in (("--output", arguments.output), ("--batch-size", arguments.batch_size)):
        if value is not None:
            raise UserError(f"{flag} ({value}) belongs to a --prompt-file that ends in .jsonl; leave it out.")
    if arguments.stream and "num_beams" in STRATEGIES[setting.decoding].keys:
        raise UserError(
            f"--stream: {setting.decoding} decoding knows its text only when it has finished; leave --stream out."
        )
    prompt = read_prompt(arguments)
    seed = setting.seed if setting.seed is not None else random.SystemRandom().randrange(SEED_LIMIT)
    writer = open_writer(arguments)
    writer.check_fits(len(writer.tokenizer.encode(prompt)), setting)
    if arguments.stream:
        stream_texts(writer, prompt, setting, seed, as_json=arguments.json)
    else:
        (texts,) = writer.write([writer.tokenizer.encode(prompt)], setting, [seed])
        for number, text in enumerate(texts):
            show(number, len(texts), prompt, text, setting, seed, as_json=arguments.json)


def open_writer(arguments: argparse.Namespace) -> Writer:
    """The model of --model with its weights kept as --weights says, on the GPU where there is one."""
    model = load_model(arguments.model, "--model")
    known = fingerprint(model, arguments.weights)
    return Writer(with_weights(model, arguments.weights), Tokenizer(), model.config.block_size, known)


def fingerprint(model: GPT, weights: Weights) -> str:
    """Changes with the model's weights, of which it reads a few, and with how they are kept."""
    some = torch.cat([part.detach().flatten() for part in (model.ln_f.weight, model.wte.weight[:16])])
    return hashlib.sha256(weights.encode() + some.float().numpy().tobytes()).hexdigest()[:12]


def stream_texts(writer: Writer, prompt: str, setting: DecodingSetting, seed: int, *, as_json: bool) -> None:
    """One text after the other, each as it is written; the same texts as without streaming."""
    count = setting.num_sequences or 1
    for number in range(count):
        if not as_json:
            put(heading(number, count) + prompt)
        pieces = PieceWriter(writer.tokenizer, piece_printer(number, as_json), [writer.tokenizer.eot_id])
        options = {"streamer": pieces, "num_return_sequences": 1}
        (texts,) = writer.write([writer.tokenizer.encode(prompt)], setting, [seed + number], **options)
        if as_json:
            show(number, count, prompt, texts[0], setting, seed, as_json=True)
        else:
            put("\n")


def piece_printer(number: int, as_json: bool) -> Callable[[str], None]:
    def write(piece: str) -> None:
        if piece:
            put(as_line({"sequence": number + 1, "piece": piece}) if as_json else piece)

    return write


def show(
    number: int, count: int, prompt: str, text: Text, setting: DecodingSetting, seed: int, *, as_json: bool
) -> None:
    if as_json:
        put(as_line(as_object(number, prompt, text, setting, seed)))
    else:
        put(f"{heading(number, count)}{prompt}{text.text}\n")


def as_object(number: int, prompt: str, text: Text, setting: DecodingSetting, seed: int) -> dict[str, Any]:
    """What --json says of a text; `seed` is that of the prompt's first text, and named only where it matters."""
    return {
        "prompt": prompt,
        "text": text.text,
        "sequence": number + 1,
        "tokens": text.tokens,
        "mean_log_prob": text.mean_log_prob,
        "finish_reason": text.finish_reason,
        "decoding": setting.decoding,
        "seed": seed + number if setting.draws else None,
        "token_ids": text.token_ids,
    }


def heading(number: int, count: int) -> str:
    return f"--- {number + 1} ---\n" if count > 1 else ""
