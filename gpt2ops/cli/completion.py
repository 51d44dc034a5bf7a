"""`gpt2 completion SHELL`: the script that lets the shell complete commands, flags, choices, files and models."""

import argparse

from gpt2core.config import PRESETS
from gpt2ops.cli.output import put

SHELLS = ("bash", "zsh", "tcsh", "fish")
HELP = """\
Print the script that completes commands, flags, choices, files and models.

  bash   mkdir -p ~/.local/share/bash-completion/completions
         gpt2 completion bash > ~/.local/share/bash-completion/completions/gpt2
  zsh    mkdir -p ~/.zfunc && gpt2 completion zsh > ~/.zfunc/_gpt2
         and, before compinit in ~/.zshrc:  fpath+=~/.zfunc
  fish   gpt2 completion fish > ~/.config/fish/completions/gpt2.fish
  tcsh   gpt2 completion tcsh > ~/.gpt2.tcsh, and in ~/.tcshrc:  source ~/.gpt2.tcsh

It works in the next shell that you open."""
# Values by the name of the flag's place; argparse's own `choices` come by themselves.
FILES = ("train_file", "prompt_file", "file", "output", "path")
FOLDERS = ("directory", "output_dir", "data", "export_space")
MODELS = ("model",)
RELEASED = tuple(name for name in PRESETS if name.startswith("gpt2"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = HELP
    parser.add_argument("shell", choices=SHELLS)


def run(arguments: argparse.Namespace) -> None:
    put(completion_script(arguments.shell))


def completion_script(shell: str) -> str:
    import shtab

    from gpt2ops.cli.main import build_parser

    parser = build_parser()
    name, words = "_gpt2_models", " ".join(RELEASED)
    preamble = {
        "bash": f'{name}() {{ compgen -W "{words}" -- "$1"; compgen -d -- "$1"; }}',
        "zsh": f"{name}() {{ _alternative 'models:model:({words})' 'folders:folder:_files -/' }}",
    }
    model = {"bash": name, "zsh": name, "tcsh": "d", "fish": f'"{words}"'}
    for action in _actions(parser):
        if action.choices or not _takes_a_value(action):
            continue
        if action.dest in MODELS:
            action.complete = model  # type: ignore[attr-defined]
        elif action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell, preamble=preamble.get(shell, "")))


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Of the parser and all under it."""
    found: list[argparse.Action] = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            for own in action.choices.values():
                found += _actions(own)
    return found


def _takes_a_value(action: argparse.Action) -> bool:
    return action.nargs != 0
