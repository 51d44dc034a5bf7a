"""`gpt2 doctor`: checks the machine and the project in this folder, and says what to fix."""

import argparse
import sys
import textwrap
from typing import Any

from gpt2ops.cli.output import put, put_json, terminal_width

DESCRIPTION = """\
Look at this machine and at the project in this folder: Python and packages,
device, memory, disk, params.yaml, DVC, locks, the MLflow store and its runs,
registered models, flow runs and what was left behind. One line each:
  ok     as it should be
  look   something to know, or to tidy up
  wrong  a run would fail or lose something; the exit code is 1
Nothing is changed without --mend."""
EXAMPLES = """\
examples:
  gpt2 doctor
  gpt2 doctor --mend
  gpt2 doctor --json | jq '.[] | select(.state == "wrong")'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "--mend",
        action="store_true",
        help="close runs that say RUNNING though no process works on them, as KILLED; set DVC's damaged files aside",
    )
    parser.add_argument("--json", action="store_true", help="a list of objects: state, area, text, remedy")


def run(arguments: argparse.Namespace) -> None:
    """Exits 1 where something is wrong."""
    from gpt2ops.maintenance.doctor.examine import examine, safely
    from gpt2ops.maintenance.doctor.finding import WRONG
    from gpt2ops.pipeline.paths import project_root

    root = project_root()
    found = safely("mend", lambda: mend(root)) if arguments.mend else []
    if not arguments.json:
        put("".join(map(as_text, found)))
    for finding in examine(root):
        found.append(finding)
        if not arguments.json:
            put(as_text(finding))
    wrong = sum(finding.state == WRONG for finding in found)
    if arguments.json:
        put_json([vars(finding) for finding in found])
    else:
        put(summary(found, wrong))
    if wrong:
        sys.exit(1)


def mend(root: Any) -> list[Any]:
    from gpt2ops.maintenance.doctor.finding import OK, Finding
    from gpt2ops.maintenance.doctor.store import close_abandoned
    from gpt2ops.pipeline.lockfile import mend as mend_dvc_files

    closed = [f"closed {run.name} ({run.run_id[:8]}) as KILLED" for run in close_abandoned(root)]
    return [
        *(Finding(OK, "runs", text) for text in closed),
        *(Finding(OK, "dvc", text) for text in mend_dvc_files(root)),
    ]


def as_text(finding: Any) -> str:
    """`look   disk        2.0 GiB free`, wrapped, with what to do on a line of its own."""
    indent = " " * 20
    lines = wrapped(f"{finding.state:<7}{finding.area:<12} {finding.text}", "", indent)
    if finding.remedy:
        lines += wrapped(f"-> {finding.remedy}", indent, f"{indent}   ")
    return "\n".join(lines) + "\n"


def wrapped(text: str, first: str, later: str) -> list[str]:
    return textwrap.wrap(
        text,
        width=terminal_width(),
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )


def summary(found: list[Any], wrong: int) -> str:
    look = sum(finding.state == "look" for finding in found)
    if not wrong and not look:
        return "\nall well\n"
    parts = [f"{wrong} wrong"] * bool(wrong) + [f"{look} to look at"] * bool(look)
    return f"\n{', '.join(parts)}\n"
