"""How many cores this process may use, which in a container are fewer than the machine has."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

# OpenMP's threads wait for one another by spinning, for milliseconds by default: on a busy machine that burns the time
# in which the thread that is waited for could run. So many spins are microseconds. Measured by benchmarks.busy.
SPINS = "5000"


def short_waits(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment before PyTorch is imported; nothing where its user has said how threads wait."""
    return {} if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys() else {"GOMP_SPINCOUNT": SPINS}


def usable_cores() -> int:
    """Cores that this process may use: by its affinity mask, and by the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cpu_limit())))


def cpu_limit(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs by the quotas of Linux's control groups (version 2) around this process; infinite without one."""
    try:
        place = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return math.inf
    folder, limit = groups / place.strip("/"), math.inf
    for group in (folder, *folder.parents):
        try:
            quota, period = (group / "cpu.max").read_text().split()
            limit = min(limit, int(quota) / int(period))
        except (OSError, ValueError):  # none here, or `max`
            pass
        if group == groups:
            break
    return limit
