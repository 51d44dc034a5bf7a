"""The flags of `gpt2 evaluate`."""

import argparse

DESCRIPTION = """\
Say how well a model knows a text: loss (nats per token), perplexity, bits a byte
(comparable between tokenizers), and how often its first guess is right. Every
token is scored once, with at least half a window of text before it."""
EXAMPLES = """\
examples:
  gpt2 evaluate --model my_model --file other.txt
  gpt2 evaluate --model gpt2 --file chapter1.txt --file chapter2.txt
  gpt2 evaluate --model models:/gpt2@champion --data data/tokens
  gpt2 evaluate --file my.txt --block-size 128 --stride 1 --max-tokens 5000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "--model",
        default="models/best",
        metavar="MODEL",
        help="a directory, a released size (gpt2 ... gpt2-xl), or models:/NAME@ALIAS (default: %(default)s)",
    )
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--file",
        action="append",
        metavar="FILE",
        help="a text: .txt, .md, .jsonl, .parquet, .gz, .zst; may be repeated, each is scored for itself",
    )
    text.add_argument(
        "--data", metavar="DIR", help="a project, or its data/tokens: its train, val and test parts (default: .)"
    )
    parser.add_argument("--block-size", type=int, metavar="N", help="tokens in a window (default: all the model takes)")
    parser.add_argument("--stride", type=int, metavar="N", help="new tokens in a window (default: half of it)")
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="windows at once (default: %(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="score only so many, from the start of each")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="(default: auto)")
    parser.add_argument("--json", action="store_true", help="an object, with the protocol")
