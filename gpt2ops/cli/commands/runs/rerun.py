"""`gpt2 rerun RUN`: repeats a run with the same data, code and settings, and compares the results."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2ops.cli.output import number, put, put_json, put_table
from gpt2ops.process.console import printable
from gpt2ops.projects.pipeline import INTERRUPTED, InterruptedPipelineError, PipelineError, run_stage

if TYPE_CHECKING:
    from gpt2ops.maintenance.rerun import RerunResult
    from gpt2ops.registry.runs import Run

DESCRIPTION = """\
Repeat a run: with its exact params.yaml, its text by hash (from DVC's cache or
its original source) and its code by digest (the present code where it is the
same, else the run's commit). It trains in a separate folder, is tracked as a
separate run, and is compared with the first one: on the same machine the weights
should be bit-identical. The registry is not changed."""
EXAMPLES = """\
examples:
  gpt2 rerun 3f99d95e
  gpt2 rerun models:/gpt2@champion --dir again --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("run", metavar="RUN", help="a run: its id, the start of it, its name, models:/NAME@ALIAS")
    parser.add_argument(
        "--dir", dest="directory", metavar="DIR", help="where to make it (default: rerun- and the start of its id)"
    )
    parser.add_argument(
        "--any-code", action="store_true", help="with the code that is here, also if the run's was other"
    )
    parser.add_argument(
        "--send-secrets",
        action="store_true",
        help="fill in the GPT2_SECRET_... variables that the address of its text names",
    )
    parser.add_argument("--json", action="store_true", help="the result as an object; all else goes to standard error")


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError where the run, its settings, its code or its text cannot be found; exits 130 for Ctrl-C."""
    from gpt2core.storage.files import with_home
    from gpt2ops.maintenance.rerun import as_dict, check_data, compare, prepare
    from gpt2ops.registry.runs import find_run

    wanted = find_run(arguments.run)
    folder = with_home(arguments.directory or f"rerun-{wanted.run_id[:8]}")
    print(f"making {printable(wanted.name)} ({wanted.run_id[:8]}) again in {folder}", file=sys.stderr, flush=True)
    try:
        for stage in prepare(wanted, folder, any_code=arguments.any_code, send_secrets=arguments.send_secrets):
            print(f"-- {stage}", file=sys.stderr, flush=True)
            run_stage(folder, stage, store=Path.cwd(), output_to_stderr=arguments.json)
            if stage == "tokenize":
                check_data(wanted, folder)
    except InterruptedPipelineError:
        print("gpt2: interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except PipelineError:
        sys.exit(1)
    from gpt2core.storage.files import read_json
    from gpt2ops.pipeline import paths
    from gpt2ops.tracking.restored_runs import stored_run_id

    again = find_run(stored_run_id(read_json(folder / paths.RUN)["run_id"]))
    result = compare(wanted, again, folder)
    if arguments.json:
        put_json(as_dict(result, folder))
    else:
        show(wanted, again, result, folder)


def show(wanted: "Run", again: "Run", result: "RerunResult", folder: Path) -> None:
    put(f"\n{wanted.run_id[:8]} again is run {again.run_id[:8]}, in {os.fspath(folder)}\n")
    weights = {True: "the same to the last bit", False: "other weights", None: "not known of the first run"}
    put(f"weights: {weights[result.same_weights]}\n")
    if not result.differences:
        put("metrics: the same\n")
        return
    rows = [
        [key.removeprefix("evaluate/"), number(first, 6), number(second, 6)]
        for key, (first, second) in result.differences.items()
    ]
    put_table(["METRIC", wanted.run_id[:8], again.run_id[:8]], rows)
