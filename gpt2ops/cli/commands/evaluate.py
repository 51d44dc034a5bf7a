"""`gpt2 evaluate`: a model and texts in, how well it knows them out."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from gpt2core.data.corpus import check_file
from gpt2core.data.text_tokens import TextTokens
from gpt2core.data.tokens import MANIFEST, open_tokens
from gpt2core.errors import UserError
from gpt2core.evaluation.scores import Score, Tokens, evaluate
from gpt2core.model import GPT
from gpt2core.runtime import Runtime, pick_runtime, set_threads
from gpt2core.storage.files import with_home
from gpt2core.tokenizer import Tokenizer
from gpt2ops.cli.output import number, put, put_json, put_table
from gpt2ops.params.decoding import flag_of
from gpt2ops.params.problems import FLAG_WORDS
from gpt2ops.pipeline import paths
from gpt2ops.registry.scoring.coverage import coverage_text, interval_text
from gpt2ops.registry.scoring.entry import score_entry, too_short
from gpt2ops.training.initial_model import load_model

SPLITS = ("train", "val", "test")


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for a model or text that is not to be had, or windows that the model does not take."""
    for flag, value in (("--batch-size", arguments.batch_size), ("--max-tokens", arguments.max_tokens)):
        if value is not None and value < (1 if flag == "--batch-size" else 2):
            raise UserError(f"{flag} ({value}) must be at least {1 if flag == '--batch-size' else 2}.")
    texts = open_texts(arguments)
    model = load_model(arguments.model, "--model")
    block_size, stride = windows(arguments, model.config.block_size)
    set_threads(None)
    try:
        runtime = pick_runtime(arguments.device, arguments.precision)
    except UserError as error:
        raise error.spelled(flag_of, FLAG_WORDS) from None
    model.to(runtime.device)
    scores = {
        name: score(model, name, tokens, arguments, (block_size, stride), runtime) for name, tokens in texts.items()
    }
    entries = {
        name: score_entry(result, arguments.max_tokens or len(texts[name]), len(texts[name]))
        for name, result in scores.items()
    }
    if arguments.json:
        put_json(
            {
                "model": arguments.model,
                "protocol": {"block_size": block_size, "stride": stride, "max_tokens": arguments.max_tokens},
                "device": str(runtime.device),
                "precision": runtime.precision,
                "scores": entries,
            }
        )
        return
    headers = ["TEXT", "TOKENS", "LOSS", "PERPLEXITY", "BITS/BYTE", "FIRST GUESS RIGHT"]
    rows = [
        [
            name,
            number(result.tokens),
            f"{result.loss:.4f}",
            number(result.perplexity),
            f"{result.bits_per_byte:.4f}" if result.bits_per_byte is not None else "-",
            f"{result.token_accuracy:.1%}",
        ]
        for name, result in scores.items()
    ]
    put_table(headers, rows)
    put("\n")
    for name, entry in entries.items():
        put(f"{name}: {interval_text(entry) or too_short(entry)}; {coverage_text(entry)}\n")
    put(f"windows of {block_size} tokens, {stride} new ones in each; {runtime.device}, {runtime.precision}\n")


def open_texts(arguments: argparse.Namespace) -> dict[str, Tokens]:
    """The texts to score, by name. Raises UserError where there is none, or one is too short."""
    if arguments.file is not None:
        texts: dict[str, Tokens] = {}
        for name in arguments.file:
            path = with_home(name)
            if not path.is_file():
                raise UserError(f"--file: {name} is {'a folder; give a file.' if path.is_dir() else 'missing.'}")
            check_file(path)
            texts[name] = TextTokens(path)
    else:
        texts = open_splits(with_home(arguments.data or "."), given=arguments.data is not None)
    short = [name for name, tokens in texts.items() if len(tokens) < 2]
    if short:
        raise UserError(f"{short[0]} has fewer than two tokens, and the first one cannot be scored.")
    return texts


def open_splits(folder: Path, *, given: bool) -> dict[str, Tokens]:
    """The parts of a tokenized corpus that have tokens, of a project or of its folder of tokens."""
    tokens = next((place for place in (folder, folder / paths.TOKENS) if (place / MANIFEST).is_file()), None)
    if tokens is None:
        where = f"--data: {folder} has" if given else "this folder has"
        raise UserError(f"{where} no tokenized text (data/tokens); name a text with --file, or a project with --data.")
    opened = open_tokens(tokens)
    return {name: split for name in SPLITS if len(split := opened.split(name)) > 1}


def windows(arguments: argparse.Namespace, longest: int) -> tuple[int, int]:
    """block_size and stride. Raises UserError where the model does not take them."""
    block_size = longest if arguments.block_size is None else arguments.block_size
    if not 1 <= block_size <= longest:
        raise UserError(f"--block-size ({block_size}) must be from 1 to {longest}, which is all that this model takes.")
    stride = max(1, block_size // 2) if arguments.stride is None else arguments.stride
    if not 1 <= stride <= block_size:
        raise UserError(f"--stride ({stride}) must be from 1 to the window's {block_size} tokens.")
    return block_size, stride


def score(
    model: GPT,
    name: str,
    tokens: Tokens,
    arguments: argparse.Namespace,
    window: tuple[int, int],
    runtime: Runtime,
) -> Score:
    total = min(len(tokens), arguments.max_tokens or len(tokens))
    with (
        tqdm(total=total, desc=name, unit="token", delay=2, disable=not sys.stderr.isatty()) as bar,
        runtime.autocast(),
    ):
        found = evaluate(
            model,
            tokens,
            block_size=window[0],
            stride=window[1],
            batch_size=arguments.batch_size,
            max_tokens=arguments.max_tokens,
            device=runtime.device,
            token_lengths=Tokenizer().token_lengths(),
            on_tokens=lambda count: bar.update(count),
        )
    assert found is not None, "a text of two tokens or more has a score"
    return found
