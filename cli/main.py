"""The `gpt2` command: parses arguments, and turns a user's mistake into one line."""

import argparse
import os
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
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


@dataclass(frozen=True)
class Command:
    """`module` has `add_arguments(parser)`, cheap to import, and `run(arguments)`."""

    module: str
    help: str


COMMANDS = {
    "generate": Command("cli.generate_arguments", "write text with a model"),
}


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; with `chosen`, only that one has its flags, which spares importing the others."""
    parser = OneLineParser(prog="gpt2", description="GPT-2 on your own text.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help, allow_abbrev=False)
        if chosen in (None, name):
            import_module(command.module).add_arguments(own)
    return parser


def main() -> None:
    """Entry point; exits 1 with one line for what a user can mend, 2 for a wrong flag, 130 for Ctrl-C."""
    try:
        chosen = next((argument for argument in sys.argv[1:] if argument in COMMANDS), "")
        arguments = build_parser(chosen).parse_args()
        import_module(COMMANDS[arguments.command].module).run(arguments)
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
