"""`gpt2 gc`: removes files that no run, alias or lock file uses; without --yes it only lists them."""

import argparse
from pathlib import Path
from typing import Any

from gpt2ops.cli.output import put, put_json, put_table

DESCRIPTION = """\
List what no run, alias or lock file uses: leftovers of killed writes,
checkpoints of other runs that have ended, folders of flow runs that have ended,
files of runs that were deleted in MLflow, metrics that were delivered late.
Nothing is removed without --yes. The champion, the challenger and every other
registered version stay, and so does what a run could resume from. DVC's cache is
DVC's: `dvc gc --workspace`."""
EXAMPLES = """\
examples:
  gpt2 gc
  gpt2 gc --yes
  gpt2 gc --checkpoints        also checkpoints of runs that could resume
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("--yes", action="store_true", help="remove it")
    parser.add_argument(
        "--checkpoints",
        action="store_true",
        help="also unfinished checkpoints of other settings, and folders of flow runs that failed",
    )
    parser.add_argument("--json", action="store_true", help="an object: garbage (a list), size_bytes, removed, notes")


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError where a stage is at work here."""
    from contextlib import nullcontext

    from gpt2ops.maintenance.garbage.collect import collect, exclusive_access, remove
    from gpt2ops.pipeline.paths import project_root

    root = project_root()
    with exclusive_access(root) if arguments.yes else nullcontext():
        found = collect(root, checkpoints_too=arguments.checkpoints)
        items = [(item, item.size_bytes) for item in found.garbage]
        if arguments.yes:
            remove(root, found.garbage)
    if arguments.json:
        put_json(as_object(root, items, found.notes, arguments.yes))
    else:
        show(root, items, found.notes, arguments.yes)


def as_object(root: Path, items: list[tuple[Any, int]], notes: tuple[str, ...], removed: bool) -> dict[str, Any]:
    listed = [{"path": str(item.path), "kind": item.kind, "why": item.why, "size_bytes": size} for item, size in items]
    return {"garbage": listed, "size_bytes": sum(size for _, size in items), "removed": removed, "notes": list(notes)}


def show(root: Path, items: list[tuple[Any, int]], notes: tuple[str, ...], removed: bool) -> None:
    for note in notes:
        put(f"note: {note}\n")
    if not items:
        put("nothing to remove\n")
        return
    rows = [
        [
            readable(size),
            item.path.relative_to(root).as_posix() if item.path.is_relative_to(root) else str(item.path),
            item.why,
        ]
        for item, size in items
    ]
    put_table(["SIZE", "WHAT", "WHY"], rows, left=(1, 2), shrink=1)
    total = readable(sum(size for _, size in items))
    if removed:
        put(f"removed {len(items)}, {total}\n")
    else:
        put(f"{len(items)} to remove, {total}; nothing was removed: `gpt2 gc --yes` does it\n")


def readable(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"
