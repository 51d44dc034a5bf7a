"""Spoils valid inputs and has every reader read them: `python -m tests.harness.fuzz --cases 100000 --seed 1`.

Counted are the inputs that were taken, those refused with a line for the user, and faults: any other exception, a
message that is not one short line, a hang, memory out of proportion, or something half-written. Each fault says how to
run its case again; its input is kept. The same seed gives the same cases.
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

from tests.harness.fuzz.areas import AREAS
from tests.harness.fuzz.harness import CHUNK, Area, Tally, run_area


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", action="append", choices=AREAS, metavar="AREA", help=f"of {', '.join(AREAS)}")
    parser.add_argument("--case", type=int, help="this one of the area's cases")
    parser.add_argument("--show", action="store_true", help="what each case came to, with its message")
    parser.add_argument("--kept", type=Path, default=Path("fuzz-faults"), help="where inputs of faults go")
    arguments = parser.parse_args()
    areas = [AREAS[name] for name in arguments.only or AREAS]
    shares = sum(area.share for area in areas)
    counts = {area.name: max(1, round(arguments.cases * area.share / shares)) for area in areas}
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None) as root:
        tallies = {area.name: Tally() for area in areas}
        started = time.monotonic()

        def work(job: tuple[Area, range]) -> None:
            area, numbers = job
            done = run_area(area, numbers, arguments.seed, Path(root), arguments.kept.resolve(), arguments.show)
            tallies[area.name].add(done)
            for fault in done.faults:
                print(f"FAULT {area.name}: {fault}", flush=True)
            if not arguments.show:
                cases = sum(tally.cases for tally in tallies.values())
                print(f"{cases:,} cases, {time.monotonic() - started:,.0f} s ({area.name})", flush=True)

        jobs = []
        for area in areas:
            numbers = range(counts[area.name]) if arguments.case is None else range(arguments.case, arguments.case + 1)
            jobs += [(area, numbers[start : start + CHUNK]) for start in range(0, len(numbers), CHUNK)]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(work, jobs))
    print(table(tallies))
    faults = sum(len(tally.faults) for tally in tallies.values())
    cases = sum(tally.cases for tally in tallies.values())
    print(f"\n{cases:,} cases, {faults} faults, {time.monotonic() - started:,.0f} s, seed {arguments.seed}")
    sys.exit(1 if faults else 0)


def table(tallies: dict[str, Tally]) -> str:
    lines = [
        f"\n{'area':<14}{'cases':>8}{'taken':>8}{'refused':>9}{'at places':>10}"
        f"{'faults':>8}{'ms':>8}{'slowest ms':>11}{'MiB':>6}"
    ]
    for name, tally in tallies.items():
        mean = 1000 * tally.seconds / max(1, tally.cases)
        lines.append(
            f"{name:<14}{tally.cases:>8,}{tally.taken:>8,}{tally.refused:>9,}{len(tally.places):>10,}"
            f"{len(tally.faults):>8,}{mean:>8.1f}{1000 * tally.slowest:>11,.0f}{tally.growth / 2**20:>6,.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
