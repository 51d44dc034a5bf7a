"""`gpt2 relocate`: corrects the absolute paths in mlruns/ after the folder was moved or copied."""

import argparse
from typing import Any

from gpt2ops.cli.output import put, put_json

DESCRIPTION = """\
MLflow writes down where each run's files lie as an absolute path. After the
project's folder was moved or copied they point to the old one, and a registered
model no longer loads. This points them here, all in one step; the database as
it was is kept beside it."""
EXAMPLES = """\
examples:
  gpt2 relocate --dry-run
  gpt2 relocate
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("--json", action="store_true", help="an object with every change")


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for a remote store, none, or one that is damaged or not writable."""
    from gpt2ops.maintenance.relocate import relocate

    found = relocate(dry_run=arguments.dry_run)
    if arguments.json:
        changes = [vars(change) for change in found.changes]
        put_json({"changes": changes, "backup": str(found.backup) if found.backup else None})
    else:
        put(as_text(found, arguments.dry_run))


def as_text(found: Any, dry_run: bool) -> str:
    from collections import Counter

    from gpt2ops.pipeline.paths import mlruns

    if not found.changes:
        return f"every path in {mlruns() / 'mlflow.db'} is in this folder; nothing to mend\n"
    now = f"they {'would point' if dry_run else 'point'} to {mlruns().parent}"
    lines = [f"{count} paths pointed to {folder}; {now}" for folder, count in found.old_folders.items()]
    columns = Counter(f"{change.table}.{change.column}" for change in found.changes)
    lines += [f"  {count:>5}  {name}" for name, count in columns.items()]
    if found.backup:
        lines.append(f"the database as it was: {found.backup} (remove it when all is well)")
    else:
        lines.append("nothing was changed; `gpt2 relocate` does it")
    return "\n".join(lines) + "\n"
