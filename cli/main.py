"""The `gpt2` command: parses arguments, and turns a user's mistake into one line."""

import argparse
import os
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from tasks.failures import failure_line


class OneLineParser(argparse.ArgumentParser):
    """A mistake is one line, without the whole usage before it; an unknown flag is named with the nearest known."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known = [flag for action in self._actions for flag in action.option_strings]
        # The parser of the whole command leaves flags to that of the subcommand.
        for argument in [] if self._subparsers else args:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and len(flag) > 2 and flag not in known:
                nearest = get_close_matches(flag, known, n=1)
                self.error(f"unknown flag {flag}" + (f"; did you mean {nearest[0]}?" if nearest else ""))
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpt2: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    from cli.flags import add_decoding_flags

    parser = OneLineParser(prog="gpt2", description="GPT-2 on your own text.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate = commands.add_parser(
        "generate",
        help="write text with a model",
        description="Write text with a model. docs/decoding.md shows each way of decoding and when to choose it.",
        allow_abbrev=False,
    )
    generate.add_argument(
        "--model",
        default="models/best",
        metavar="MODEL",
        help="a directory, a released size (gpt2 ... gpt2-xl), or models:/NAME@ALIAS (default: %(default)s)",
    )
    generate.add_argument(
        "--weights",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="how the weights are kept: bf16 and int8 (for a CPU) are smaller and faster (default: %(default)s)",
    )
    add_prompt_flags(generate)
    add_decoding_flags(generate)
    return parser


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompt and result")
    prompts = group.add_mutually_exclusive_group()
    prompts.add_argument("stdin", nargs="?", choices=("-",), metavar="-", help="read the prompt from standard input")
    prompts.add_argument("--prompt", metavar="TEXT", help="start of the text (default: the start of a document)")
    prompts.add_argument(
        "--prompt-file",
        metavar="FILE",
        help='a text file is one prompt; a .jsonl file has an object a line: {"prompt": ..., "id": ..., "seed": ...}, '
        "with any key of params.yaml's sample.settings over the flags; needs --output",
    )
    group.add_argument("--output", metavar="OUT.jsonl", help="where the texts of a .jsonl file go; resumes")
    group.add_argument("--batch-size", type=int, default=None, metavar="N", help="prompts at once (default: 8)")
    group.add_argument("--stream", action="store_true", help="write the text as it comes")
    group.add_argument("--json", action="store_true", help="an object a text: what was written, and how likely it was")


def main() -> None:
    """Entry point; exits 1 with one line for what a user can mend, 2 for a wrong flag, 130 for Ctrl-C."""
    try:
        arguments = build_parser().parse_args()
        from cli.generate import run

        run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("gpt2: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader has left, as `head` does. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        line = failure_line("gpt2", error)
        if line is None:
            raise
        print(f"gpt2: error: {line}", file=sys.stderr)
        sys.exit(1)
