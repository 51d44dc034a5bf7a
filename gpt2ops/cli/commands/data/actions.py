"""`gpt2 data ACTION`: which module runs each action."""

import argparse
from importlib import import_module

DESCRIPTION = "Look at your data before you train on it."
EXAMPLES = "examples:\n  gpt2 data show faq.jsonl\n  gpt2 data show chats.jsonl --format chat --count 2 --json"
# Each has DESCRIPTION, EXAMPLES, add_flags(parser) and show(arguments).
ACTIONS = {"show": ("gpt2ops.cli.commands.data.show", "print each token as the model will see it, trained or not")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    actions = parser.add_subparsers(dest="action", required=True, metavar="|".join(ACTIONS))
    for name, (module, summary) in ACTIONS.items():
        texts = import_module(module)
        own = actions.add_parser(
            name, help=summary, description=texts.DESCRIPTION, epilog=texts.EXAMPLES, allow_abbrev=False
        )
        texts.add_flags(own)


def run(arguments: argparse.Namespace) -> None:
    """Run the chosen action. Raises UserError as it does."""
    module, _ = ACTIONS[arguments.action]
    import_module(module).show(arguments)
