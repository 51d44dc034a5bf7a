"""Where a prompt comes from: the command line, a text file, standard input."""

import argparse
import sys
from pathlib import Path

from gpt2core.errors import UserError
from gpt2core.storage.bounds import read_whole
from gpt2core.tokenizer import check_unicode

STDIN = "-"
MOST_PROMPT_BYTES = 2**30  # of a file of prompts


def read_prompt(arguments: argparse.Namespace) -> str:
    """The prompt, empty where none is given. Raises UserError where it is not text or its file cannot be read."""
    file = prompt_file(arguments)
    if file is None:
        prompt = arguments.prompt or ""
        try:
            check_unicode(prompt)
        except UserError as error:
            raise UserError(f"--prompt: {error}") from None
        return prompt
    if file == STDIN:
        content, name = sys.stdin.buffer.read(), "standard input"
    else:
        content, name = read_bytes(Path(file)), file
    # Editors end a file with a line break, which is not part of the prompt.
    return decode(content, name).removesuffix("\n").removesuffix("\r")


def prompt_file(arguments: argparse.Namespace) -> str | None:
    """The file of the prompts, `-` for standard input, None where the prompt is on the command line."""
    return arguments.stdin or arguments.prompt_file


def read_bytes(path: Path) -> bytes:
    try:
        return read_whole(path, MOST_PROMPT_BYTES, f"--prompt-file ({path})")
    except FileNotFoundError:
        raise UserError(f"--prompt-file: {path} is missing.") from None
    except IsADirectoryError:
        raise UserError(f"--prompt-file: {path} is a folder; give a file.") from None


def decode(content: bytes, name: str) -> str:
    """UTF-8 as text, without a byte order mark. Raises UserError naming the invalid byte."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: byte {error.start} (0x{content[error.start]:02X}) is not valid UTF-8; save it as UTF-8."
        ) from None
