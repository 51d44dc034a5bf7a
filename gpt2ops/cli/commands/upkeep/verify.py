"""`gpt2 verify`: checks token sets, checkpoints, models and outputs against the hashes recorded with them."""

import argparse
import os
import sys
from pathlib import Path

from gpt2ops.cli.output import put, put_json

DESCRIPTION = """\
Read files again and compare them with the hashes that were recorded with
them: token sets, checkpoints, models/best, all that dvc.lock lists, DVC's own
copies of it, and the MLflow database. Without PATH: everything in this project. Each damaged file is
named, and the exit code is 1. Training checks its tokens by itself."""
EXAMPLES = """\
examples:
  gpt2 verify
  gpt2 verify data/tokens
  gpt2 verify models/checkpoints --json
"""
REMEDY = {
    "tokens": "`dvc checkout data/tokens`, or `dvc repro --force tokenize`",
    "checkpoint": "nothing to do: a training takes the newest whole one; `gpt2 gc` removes what it set aside",
    "model": "`dvc checkout models/best`, or `dvc repro --force finetune`",
    "output": "`dvc checkout PATH` brings it back, unless a run was just cut: then `dvc repro`",
    "cache": "remove the named files; then `dvc pull` fetches them again, or `dvc repro` makes them again",
    "store": "see docs/maintenance.md",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="a token set, checkpoint, or output")
    parser.add_argument("--json", action="store_true", help="a list of objects: what, kind, state, damage")


def run(arguments: argparse.Namespace) -> None:
    """Exits 1 where a file is damaged. Raises UserError for a path that has no hashes, or where nothing is to check."""
    from gpt2core.errors import UserError
    from gpt2ops.maintenance.verify import verify_path, verify_project
    from gpt2ops.pipeline.paths import project_root

    root = project_root()
    groups = [verify_path(path, root) for path in arguments.paths] if arguments.paths else [verify_project(root)]
    found = []
    for group in groups:
        for result in group:
            found.append(result)
            if not arguments.json:
                lines = [
                    f"{result.state:<9}{result.kind:<12}{result.what}",
                    *(f"         {line}" for line in result.damage),
                ]
                put("\n".join(lines).replace(f"{root}{os.sep}", "") + "\n")
    if not found:
        raise UserError(f"nothing to verify in {root}: no tokens, checkpoints, models or dvc.lock.")
    damaged = [result for result in found if result.damage]
    if arguments.json:
        put_json([{**vars(result), "damage": list(result.damage), "state": result.state} for result in found])
    else:
        put(f"\n{len(damaged)} of {len(found)} damaged\n" if damaged else "\nall whole\n")
        kinds = list(dict.fromkeys(result.kind for result in damaged))
        if "cache" in kinds:  # what DVC would bring back is damaged itself
            kinds = [kind for kind in kinds if "dvc checkout" not in REMEDY[kind]]
        put("".join(f"-> {kind}: {REMEDY[kind]}\n" for kind in kinds))
    if damaged:
        sys.exit(1)
