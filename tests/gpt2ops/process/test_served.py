"""Processes of `flows.serve` are found by their mark, and are left over when that one has ended."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2ops.process.served import left_by_serving, served_mark, served_processes
from gpt2ops.process.signals import is_alive

SLEEPER = "import time; print(flush=True); time.sleep(600)"
# Becomes a sleeper that was served by the process whose id it reads.
LATE_MARK = (
    "import os, sys; print(flush=True); mark = f'{input()} {sys.argv[1]}'\n"
    f"os.execve(sys.executable, [sys.executable, '-c', {SLEEPER!r}], {{**os.environ, 'GPT2_SERVED_BY': mark}})"
)


@contextmanager
def running(code: str, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_what_this_process_serves_is_found_for_its_folder_only_and_is_not_left_over(tmp_path: Path) -> None:
    with running(SLEEPER, **served_mark(tmp_path)) as child:
        assert [(found.pid, server) for found, server in served_processes(tmp_path)] == [(child.pid, os.getpid())]
        assert list(served_processes(tmp_path / "elsewhere")) == []
        assert left_by_serving(tmp_path) == []


def test_a_younger_process_with_the_process_id_of_a_killed_serve_is_not_taken_for_it(tmp_path: Path) -> None:
    with running(LATE_MARK, str(tmp_path)) as orphan, running(SLEEPER) as younger:
        assert orphan.stdin is not None
        assert orphan.stdout is not None
        print(younger.pid, file=orphan.stdin, flush=True)
        orphan.stdout.readline()
        assert [found.pid for found in left_by_serving(tmp_path)] == [orphan.pid]


def test_neither_a_zombie_nor_a_number_that_is_no_process_id_is_alive() -> None:
    with running("print(flush=True)") as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(ended.pid)
    assert not any(map(is_alive, (ended.pid, -1, 10**400)))
    assert is_alive(os.getpid())
