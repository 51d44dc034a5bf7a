"""The `gpt2` command: imports the chosen subcommand, parses its flags, and prints a user's mistake as one line."""

import argparse
import os
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from gpt2core.errors import as_one_line
from gpt2ops.cli.output import use_plain_streams
from gpt2ops.process.console import printable
from gpt2ops.process.failures import failure_line
from gpt2ops.process.startup import share_cores


class HelpFormatter(argparse.HelpFormatter):
    """Keeps the line breaks of a text that has some, as examples do; wraps a single long line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"max_help_position": 28, **options})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


class ShowVersion(argparse.Action):
    """`--version`; imports what finds the version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from gpt2ops.pipeline.code_version import PACKAGE, package_version

        print(f"{PACKAGE} {package_version()}")
        parser.exit()


class OneLineParser(argparse.ArgumentParser):
    """Prints a mistake as one line without the usage; names the nearest known flag for an unknown one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = [with_dashes(argument) for argument in (sys.argv[1:] if args is None else args)]
        known = [flag for action in self._actions for flag in action.option_strings]
        # The top parser leaves unknown flags to the subcommand's parser.
        for argument in [] if self._subparsers else args:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and len(flag) > 2 and flag not in known:
                nearest = get_close_matches(flag, known, n=1)
                self.error(f"unknown flag {flag}" + (f"; did you mean {nearest[0]}?" if nearest else ""))
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            nearest = get_close_matches(str(value), choices, n=1, cutoff=0.7)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there is {', '.join(choices)}"
            raise argparse.ArgumentError(action, f"{value!r} is unknown; {hint}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, as_one_line(f"gpt2: error: {message} (see {self.prog} --help)") + "\n")

    def format_help(self) -> str:
        return overview() if self._subparsers and self.prog == "gpt2" else super().format_help()


def with_dashes(argument: str) -> str:
    """`--train_file` as `--train-file`: other training scripts spell flags with underscores."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


@dataclass(frozen=True)
class Command:
    """`module` has `run(arguments)`; `flags`, by default the same module, has `add_arguments(parser)`.

    `flags` must be cheap to import: `gpt2 --help` and the completion script import all of them.
    """

    module: str
    help: str
    flags: str | None = None


COMMANDS = {
    "init": Command("gpt2ops.cli.commands.init", "start a project on your own text"),
    "finetune": Command(
        "gpt2ops.cli.commands.finetune", "train on your text in one line", flags="gpt2ops.cli.flags.finetune"
    ),
    "data": Command("gpt2ops.cli.commands.data.actions", "look at your data before you train on it"),
    "evaluate": Command(
        "gpt2ops.cli.commands.evaluate", "how well a model knows a text", flags="gpt2ops.cli.flags.evaluate"
    ),
    "generate": Command("gpt2ops.cli.commands.generate", "write text with a model", flags="gpt2ops.cli.flags.generate"),
    "app": Command("gpt2ops.cli.commands.app", "a web page that writes text with your models"),
    "import": Command(
        "gpt2ops.cli.commands.import_model", "read weights made elsewhere: nanoGPT, state dicts, Hugging Face ..."
    ),
    "export": Command(
        "gpt2ops.cli.commands.export", "write a Hugging Face directory with a model card, checked in two runtimes"
    ),
    "push": Command(
        "gpt2ops.cli.commands.push", "publish a model on the Hugging Face hub; --dry-run shows what would go there"
    ),
    "runs": Command("gpt2ops.cli.commands.runs.list", "list the runs"),
    "compare": Command("gpt2ops.cli.commands.runs.compare", "compare two runs: settings, metrics, data and code"),
    "rerun": Command("gpt2ops.cli.commands.runs.rerun", "repeat a run and compare the results"),
    "models": Command("gpt2ops.cli.commands.models", "list registered models, promote one, roll back"),
    "doctor": Command("gpt2ops.cli.commands.upkeep.doctor", "check this machine and this project, and say what to fix"),
    "verify": Command(
        "gpt2ops.cli.commands.upkeep.verify", "check tokens, checkpoints and models against their recorded hashes"
    ),
    "gc": Command(
        "gpt2ops.cli.commands.upkeep.gc",
        "remove files that no run, alias or lock file uses; without --yes, only list them",
    ),
    "relocate": Command(
        "gpt2ops.cli.commands.upkeep.relocate", "correct the paths in mlruns/ after the folder was moved or copied"
    ),
    "completion": Command("gpt2ops.cli.completion", "print the completion script of a shell"),
}
GROUPS = {
    "train": ("init", "data", "finetune", "evaluate"),
    "use a model": ("generate", "app"),
    "runs and models": ("runs", "compare", "rerun", "models"),
    "exchange": ("import", "export", "push"),
    "maintenance": ("doctor", "verify", "gc", "relocate"),
    "shell": ("completion",),
}
EXIT_CODES = "exit codes: 0 done, 1 it failed (one line says why), 2 wrong flags, 130 interrupted"


def overview() -> str:
    """`gpt2 --help`."""
    lines = ["usage: gpt2 COMMAND [flags]      `gpt2 COMMAND --help` explains each one", "", DESCRIPTION]
    grouped = [name for names in GROUPS.values() for name in names]
    groups = {**GROUPS, "more": tuple(name for name in COMMANDS if name not in grouped)}
    for title, names in groups.items():
        own = [f"  {name:<12}{COMMANDS[name].help}" for name in names if name in COMMANDS]
        lines += ["", f"{title}:", *own] if own else []
    return "\n".join([*lines, "", *EXAMPLES, "", "flags: --help, --version", EXIT_CODES, ""])


DESCRIPTION = "GPT-2 on your own text: train it, write with it, know how good it is, keep every run."
EXAMPLES = (
    "examples:",
    "  gpt2 finetune --model gpt2 --train-file my.txt --output-dir my_model --epochs 3",
    '  gpt2 generate --model my_model --prompt "Once upon a time"',
    "  gpt2 runs",
)


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; with `chosen`, only that one has its flags, and the others are not imported."""
    parser = OneLineParser(prog="gpt2", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help, allow_abbrev=False)
        if chosen in (None, name):
            import_module(command.flags or command.module).add_arguments(own)
            own.set_defaults(build_parser=build_parser)  # what `completion` describes
    return parser


def main() -> None:
    """Entry point; exits 1 with one line for what a user can change, 2 for a wrong flag, 130 for Ctrl-C."""
    use_plain_streams()
    share_cores()
    try:
        chosen = chosen_command(sys.argv[1:])
        arguments = build_parser(chosen).parse_args()
        import_module(COMMANDS[arguments.command].module).run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("gpt2: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. Python's flush at exit must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        line = failure_line("gpt2", error)
        if line is None:
            raise
        print(f"gpt2: error: {printable(line)}", file=sys.stderr)
        sys.exit(1)


def chosen_command(arguments: list[str]) -> str:
    """The command that the first word names; empty where that is a flag. Exits 2 where there is no such command."""
    first = arguments[0] if arguments else ""
    if first in COMMANDS or first.startswith("-"):
        return first
    nearest = get_close_matches(first, COMMANDS, n=1, cutoff=0.7)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(COMMANDS)}"
    problem = f"unknown command {first!r}; {hint}" if first else f"which command? There are {', '.join(COMMANDS)}"
    print(f"gpt2: error: {problem} (see gpt2 --help)", file=sys.stderr)
    sys.exit(2)
