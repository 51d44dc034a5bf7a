"""How many cores a process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2core.kernels.cores import cpu_limit, short_waits, usable_cores

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"": "150000 100000"}, 1.5),  # in a container the process's own group is the root
        ("0::/a/b\n", {"a": "400000 100000", "a/b": "max 100000"}, 4.0),  # a limit of a group holds for those in it
        ("0::/a/b\n", {"a": "50000 100000", "a/b": "200000 100000"}, 0.5),
        ("0::/a\n", {"": "max 100000", "a": "nonsense"}, float("inf")),
        ("3:cpu:/a\n", {}, float("inf")),
    ],
)
def test_the_smallest_quota_around_a_process_counts(
    own: str, limits: dict[str, str], expected: float, tmp_path: Path
) -> None:
    groups, file = tmp_path / "groups", tmp_path / "cgroup"
    file.write_text(own)
    for name, text in limits.items():
        (groups / name).mkdir(parents=True, exist_ok=True)
        (groups / name / "cpu.max").write_text(text + "\n")
    assert cpu_limit(groups, file) == expected


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpu_limit(tmp_path / "none", tmp_path / "none") == float("inf")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_an_affinity_mask_is_respected() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from gpt2core.kernels.cores import usable_cores; print(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_waits_are_short_unless_the_user_has_said_how_threads_wait() -> None:
    assert list(short_waits({})) == ["GOMP_SPINCOUNT"]
    assert short_waits({"GOMP_SPINCOUNT": "7"}) == short_waits({"OMP_WAIT_POLICY": "active"}) == {}
