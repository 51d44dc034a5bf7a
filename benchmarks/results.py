"""What every benchmark says of its machine, and its part of benchmarks/RESULTS.md."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"


def machine() -> dict[str, str]:
    """Date, commit, device and versions of a measurement."""
    import torch

    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    device = f"{cpu_name()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name()}, {device}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit,
        "device": device,
        "versions": f"torch {torch.__version__}, transformers {version('transformers')}",
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def write_section(start: str, end: str, section: str) -> None:
    """Put `section`, which begins with `start` and ends with `end`, into RESULTS.md in place of the one before."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    if start in text:
        before, _, rest = text.partition(start)
        text = before + section + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    RESULTS.write_text(text, encoding="utf-8")


def write_report(name: str, title: str, lines: Sequence[str], command: str) -> None:
    """Print `lines`, and put them under `title` into the section `name`, with when, where and by which command."""
    start, end = f"<!-- {name}: written by benchmarks.{name} -->", f"<!-- {name}: end -->"
    about = machine()
    origin = [f"- {about['date']}, commit {about['commit']}, {about['device']}.", f"- `{command}`"]
    print(*lines, sep="\n")
    write_section(start, end, "\n".join([start, "", f"## {title}", "", *lines, "", *origin, "", end]))


def in_a_process(command: Sequence[str], environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """The JSON that a measurement prints as its last line, or why there is none under `failed`."""
    environment = {**os.environ, **environment}
    try:
        done = subprocess.run(
            command, env=environment, cwd=HERE.parent, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not ready within {seconds:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def origin_lines(rows: dict[str, Any]) -> list[str]:
    """When, where and by which commands the rows were measured."""
    runs = sorted({(row["date"], row["commit"], row["device"], row["versions"]) for row in rows.values()})
    lines = ["", *(f"- {date}, commit {commit}, {device}, {versions}." for date, commit, device, versions in runs)]
    return lines + [f"- `{command}`" for command in sorted({row["command"] for row in rows.values()})]
