"""`gpt2 generate`: prompts in, texts out."""

import argparse
import random
from collections.abc import Callable
from typing import Any

from gpt2core.data.examples.template import Template, answer_text
from gpt2core.decoding.streaming import PieceWriter
from gpt2core.errors import UserError
from gpt2ops.cli.flags.decoding import decoding_setting
from gpt2ops.cli.generation.prompts import prompt_file, read_prompt
from gpt2ops.cli.generation.writer import Writer, open_writer
from gpt2ops.cli.output import as_line, put
from gpt2ops.params.decoding import STRATEGIES, DecodingSetting
from gpt2ops.sampling.texts import Text

SEED_LIMIT = 2**32


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
    writer.check_fits(len(writer.encode(prompt)), setting)
    if arguments.stream:
        stream_texts(writer, prompt, setting, seed, as_json=arguments.json)
    else:
        (texts,) = writer.write([writer.encode(prompt)], setting, [seed])
        for number, text in enumerate(texts):
            show(number, len(texts), prompt, text, setting, seed, as_json=arguments.json, alone=bool(writer.template))


def stream_texts(writer: Writer, prompt: str, setting: DecodingSetting, seed: int, *, as_json: bool) -> None:
    """One text after the other, each as it is written; the same texts as without streaming."""
    count = setting.num_sequences or 1
    for number in range(count):
        if not as_json:
            put(heading(number, count) + ("" if writer.template else prompt))
        printer = piece_printer(number, as_json, writer.template)
        pieces = PieceWriter(writer.tokenizer, printer, [writer.tokenizer.eot_id])
        options = {"streamer": pieces, "num_return_sequences": 1}
        (texts,) = writer.write([writer.encode(prompt)], setting, [seed + number], **options)
        if as_json:
            show(number, count, prompt, texts[0], setting, seed, as_json=True)
        else:
            put("\n")


def piece_printer(number: int, as_json: bool, template: Template | None) -> Callable[[str], None]:
    """Prints the pieces of a text, an answer without the template's own blank."""
    begun = False

    def write(piece: str) -> None:
        nonlocal begun
        if piece and not begun:
            piece, begun = answer_text(template, piece), True
        if piece:
            put(as_line({"sequence": number + 1, "piece": piece}) if as_json else piece)

    return write


def show(
    number: int,
    count: int,
    prompt: str,
    text: Text,
    setting: DecodingSetting,
    seed: int,
    *,
    as_json: bool,
    alone: bool = False,
) -> None:
    """Print a text after its prompt, or an answer `alone`."""
    if as_json:
        put(as_line(as_object(number, prompt, text, setting, seed)))
    else:
        put(f"{heading(number, count)}{'' if alone else prompt}{text.text}\n")


def as_object(number: int, prompt: str, text: Text, setting: DecodingSetting, seed: int) -> dict[str, Any]:
    """A text as --json prints it; `seed` is that of the prompt's first text, None where nothing was drawn."""
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
