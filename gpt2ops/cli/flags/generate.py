"""The flags of `gpt2 generate`."""

import argparse

from gpt2ops.cli.flags.decoding import add_decoding_flags

EXAMPLES = """\
examples:
  gpt2 generate --model my_model --prompt "Once upon a time" --seed 1
  gpt2 generate --model gpt2 --prompt "To be" --num-sequences 3 --temperature 0.7
  gpt2 generate --model models:/gpt2@champion --decoding beam --num-beams 5
  gpt2 generate --prompt "To be" --weights int8 --stream
  gpt2 generate --prompt-file prompts.jsonl --output texts.jsonl
  cat letter.txt | gpt2 generate - --max-new-tokens 40 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write text with a model. docs/decoding.md shows each way of decoding and when to choose it."
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--model",
        default="models/best",
        metavar="MODEL",
        help="a directory, a released size (gpt2 ... gpt2-xl), or models:/NAME@ALIAS (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="how weights are kept: bf16 is smaller and faster, int8 (for a CPU) smallest (default: %(default)s)",
    )
    _add_prompt_flags(parser)
    add_decoding_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    from gpt2ops.cli.commands.generate import run

    run(arguments)


def _add_prompt_flags(parser: argparse.ArgumentParser) -> None:
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
