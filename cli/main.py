"""The `gpt2` command: parses arguments, and turns a user's mistake into one line."""

import argparse
import sys

from tasks.failures import failure_line


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpt2", description="GPT-2 on your own text.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    generate = commands.add_parser("generate", help="write text with a model")
    generate.add_argument(
        "--model",
        default="models/best",
        help="a directory, a released size (gpt2 ... gpt2-xl), or models:/NAME@ALIAS (default: %(default)s)",
    )
    generate.add_argument("--prompt", default="", help="start of the text (default: the start of a document)")
    generate.add_argument("--decoding", choices=("greedy", "sample"), default="sample")
    generate.add_argument("--max-new-tokens", type=int, default=100)
    generate.add_argument("--num-sequences", type=int, default=1)
    generate.add_argument("--temperature", type=float, default=0.8)
    generate.add_argument("--top-k", type=int, default=50)
    generate.add_argument("--top-p", type=float, default=0.95)
    generate.add_argument("--seed", type=int, default=None, help="the same seed gives the same text")
    return parser


def main() -> None:
    """Entry point; exits 1 with one line for what a user can mend, 130 for Ctrl-C."""
    arguments = build_parser().parse_args()
    try:
        from cli.generate import print_texts

        print_texts(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        line = failure_line("gpt2", error)
        if line is None:
            raise
        print(f"gpt2: error: {line}", file=sys.stderr)
        sys.exit(1)
