"""Training beside other work: tokens a second with k processes that compute without end, against the Trainer.

python -m benchmarks.busy [--busy 0 1 2 4] [--steps 40] [--repeats 3]
Writes its table into benchmarks/RESULTS.md. `fair` is the better of the machine's share for two threads, 2/(2+k) of the
quiet speed, and of what one thread gives beside the same processes.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.results import write_report
from benchmarks.training import measure

TOKENS = 4 * 128
OPENMP_DEFAULT = "300000"  # spins of libgomp where the environment names none
# name: side of benchmarks.training, threads (None: one a core), environment
SIDES: dict[str, tuple[str, int | None, dict[str, str]]] = {
    "ours": ("ours", None, {}),
    "ours, OpenMP's own waits": ("ours", None, {"GOMP_SPINCOUNT": OPENMP_DEFAULT}),
    "ours, one thread": ("ours", 1, {}),
    "Trainer": ("Trainer, its defaults (fp32)", None, {}),
}
ENDLESS = "while True: pass"


@contextmanager
def busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", ENDLESS]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def speed(side: str, steps: int) -> float:
    """Tokens a second."""
    name, threads, environment = SIDES[side]
    job = {"side": name, "preset": "small", "batch": 4, "length": 128, "steps": steps, "threads": threads}
    found = measure(job, environment)
    if "failed" in found:
        raise SystemExit(f"{side}: {found['failed']}")
    return TOKENS / float(found["mean_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    speeds: dict[int, dict[str, float]] = {}
    for count in options.busy:
        with busy(count):
            runs = [{side: speed(side, options.steps) for side in SIDES} for _ in range(options.repeats)]
        speeds[count] = {side: statistics.median(run[side] for run in runs) for side in SIDES}
        print(count, speeds[count], flush=True)
    quiet = speeds[min(speeds)]["ours"]
    lines = [
        f"Tokens/s of training, small preset, 4 x 128, median of {options.repeats} runs of {options.steps} steps.",
        "",
        "| busy processes | " + " | ".join(SIDES) + " | ours of fair | ours to Trainer |",
        "|---" * (len(SIDES) + 3) + "|",
    ]
    for count, found in speeds.items():
        fair = max(2 / (2 + count) * quiet, found["ours, one thread"])
        cells = [f"{found[side]:,.0f}" for side in SIDES]
        ratios = [f"{found['ours'] / fair:.0%}", f"{found['ours'] / found['Trainer']:.1f}x"]
        lines.append(f"| {count} | " + " | ".join([*cells, *ratios]) + " |")
    write_report("busy", "Beside other work", lines, "python -m benchmarks.busy")


if __name__ == "__main__":
    main()
