"""Processes that a `flows.serve` started, and whether it still runs.

Each of them carries a mark in its environment, by which it is found after its parents were killed.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from gpt2ops.process.signals import is_alive

_SERVED_BY = "GPT2_SERVED_BY"  # "PID FOLDER" of the `flows.serve`


def served_mark(folder: Path) -> dict[str, str]:
    """The environment variable that marks what this process starts as served for `folder`."""
    return {_SERVED_BY: f"{os.getpid()} {folder}"}


def served_processes(folder: Path) -> Iterator[tuple[psutil.Process, int]]:
    """Live processes that a `flows.serve` of `folder` started, each with the process id of that `flows.serve`."""
    for process in other_processes():
        with suppress(psutil.Error, OSError):  # another user's, or it has ended
            pid, _, served = process.environ().get(_SERVED_BY, "").partition(" ")
            if served == str(folder) and pid.isdecimal() and is_alive(process):
                yield process, int(pid)


def left_by_serving(folder: Path) -> list[psutil.Process]:
    """Processes whose `flows.serve` of `folder` was killed."""
    return [process for process, server in served_processes(folder) if not _is_parent(server, process)]


def _is_parent(server: int, process: psutil.Process) -> bool:
    """Whether `server` is still the process that started this one: a reused process id belongs to a younger one."""
    try:
        return is_alive(server) and psutil.Process(server).create_time() <= process.create_time()
    except psutil.Error:
        return False


def other_processes() -> Iterator[psutil.Process]:
    psutil.process_iter.cache_clear()  # the cache confuses a reused process id with the process before it
    yield from (process for process in psutil.process_iter() if process.pid != os.getpid())
