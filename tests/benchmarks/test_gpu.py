"""`make bench-gpu` is run on a GPU once in a long while: here every row of it runs with tiny models on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import ROWS, ROWS_FILE
from benchmarks.results import RESULTS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_row_runs_dry_and_nothing_is_written() -> None:
    files = [path for path in (RESULTS, ROWS_FILE) if path.exists()]
    before = [path.read_bytes() for path in files]
    # A whole-model compilation is no code of ours, and takes a C++ compiler.
    rows = [name for name in ROWS if "compiled" not in name]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--dry", "--rows", *rows],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not measured" not in done.stdout
    shown = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(shown) == sum(len(ROWS[name][2]) for name in rows)
    assert [path.read_bytes() for path in files] == before
