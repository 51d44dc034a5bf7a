"""What is not training: importing the library, `dvc repro` with nothing to do, and each stage of the default run.

python -m benchmarks.starting
Runs the committed default pipeline once in an empty folder (minutes), and writes the table into benchmarks/RESULTS.md.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import HERE, write_report

STAGE_LINE = "Running stage '"
IMPORTS = ("gpt2core", "gpt2core.model", "tasks.tokenize", "tasks.finetune", "tasks.register")


def seconds_of(command: list[str], folder: Path, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=True)
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "GPT2_", "DVC_"))}
    return {**kept, "PATH": path, "DVC_NO_ANALYTICS": "true"}


def stage_seconds(folder: Path) -> dict[str, float]:
    """From one stage's first line to the next one's, with what DVC does for it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    began: dict[str, float] = {}
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(STAGE_LINE):
            began[line.removeprefix(STAGE_LINE).partition("'")[0]] = time.perf_counter()
    if process.wait():
        sys.exit("".join(said[-5:]))
    ends = [*list(began.values())[1:], time.perf_counter()]
    return {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}


def main() -> None:
    lines = ["| what | seconds |", "|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = subprocess.run(["git", "-C", str(HERE.parent), "archive", "HEAD"], capture_output=True, check=True)
        subprocess.run(["tar", "x", "-C", name], input=archive.stdout, check=True)
        (folder / "dvc.lock").unlink()  # it names results of another machine
        subprocess.run(
            [sys.executable, "-m", "dvc", "config", "--local", "core.no_scm", "true"], cwd=folder, check=True
        )
        for module in IMPORTS:
            lines.append(
                f"| `import {module}` | {seconds_of([sys.executable, '-c', f'import {module}'], folder):.2f} |"
            )
        stages = stage_seconds(folder)
        nothing = seconds_of([sys.executable, "-m", "dvc", "repro"], folder)
    lines.append(f"| `dvc repro` with nothing to do | {nothing:.2f} |")
    lines += [f"| stage `{stage}` | {seconds:.1f} |" for stage, seconds in stages.items()]
    six = sum(seconds for stage, seconds in stages.items() if stage not in ("finetune", "report"))
    lines.append(f"| **the six stages but `finetune` and `report`** | **{six:.1f}** |")
    title = "Starting, and all that is not training: the default run"
    write_report("starting", title, lines, "python -m benchmarks.starting")


if __name__ == "__main__":
    main()
