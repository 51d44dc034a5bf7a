"""Runs cases in processes of their own, each held to a time, an amount of memory, and one line for the user.

A case is a function of area, seed and number. Its reader may take the input or refuse it; all else is a fault.
"""

import contextlib
import io
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2ops.process.failures import failure_line

ROOT = Path(__file__).resolve().parents[3]
CPU_SECONDS = 10  # of one case; its input is a few kilobytes
REAL_SECONDS = 60.0  # of one case, on a machine that others use too
MEMORY_BYTES = 600 * 2**20  # that a case may ask for beyond what its process has
GROWTH_BYTES = 300 * 2**20  # that it may really use
LONGEST_LINE = 1000
MOST_LINES = 30  # of a reader that has a line for each problem
CHUNK = 4000  # cases a process
PLACE = "qdqq"  # the case that a process is at, since when, and how many before it were taken and refused
NOT_A_CASE = 70  # exit code
HALF_WRITTEN = (".partial", ".old", ".tmp")


class Fault(Exception):  # noqa: N818
    """What a reader did that it must not do."""


class _TooSlow(BaseException):
    pass


@dataclass(frozen=True)
class Area:
    """`prepare` makes valid inputs in a folder, `case` spoils one of them in another and has it read.

    `case` returns where the reader took the input, and raises what the reader raised. `lines`: a message may have.
    """

    name: str
    share: float
    prepare: Callable[[Path], Any]
    case: Callable[[Any, random.Random, Path], None]
    lines: int = 1


@dataclass
class Tally:
    cases: int = 0
    taken: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0
    slowest_case: int = -1
    growth: int = 0
    places: Counter[str] = field(default_factory=Counter)  # where it was refused

    def add(self, other: "Tally") -> None:
        self.cases += other.cases
        self.taken += other.taken
        self.refused += other.refused
        self.faults += other.faults
        self.seconds += other.seconds
        if other.slowest > self.slowest:
            self.slowest, self.slowest_case = other.slowest, other.slowest_case
        self.growth = max(self.growth, other.growth)
        self.places.update(other.places)


def run_area(area: Area, numbers: range, seed: int, root: Path, kept: Path, show: bool = False) -> Tally:
    """All of `numbers`, in one process after the other; one that dies is a fault of the case it was at."""
    total = Tally()
    at = numbers.start
    while at < numbers.stop:
        done, at = _run_process(area, range(at, min(numbers.stop, at + CHUNK)), seed, root, kept, show)
        total.add(done)
    return total


def _run_process(area: Area, numbers: range, seed: int, root: Path, kept: Path, show: bool) -> tuple[Tally, int]:
    root = root / f"{area.name}-{numbers.start}"
    root.mkdir(parents=True)
    place = mmap.mmap(-1, struct.calcsize(PLACE))
    place[:] = struct.pack(PLACE, numbers.start, time.monotonic(), 0, 0)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            tally = _work(area, numbers, seed, root, kept, place, show)
            with os.fdopen(writing, "w") as pipe:
                json.dump(vars(tally), pipe)
            os._exit(0)
        except BaseException:
            os.write(1, traceback.format_exc().encode())
            os._exit(NOT_A_CASE)
    os.close(writing)
    died = _wait(pid, place)
    if died == NOT_A_CASE:
        raise RuntimeError(f"{area.name} cannot be prepared")
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    if not died and answer:
        shutil.rmtree(root, ignore_errors=True)
        values = json.loads(answer)
        return Tally(**{**values, "places": Counter(values["places"])}), numbers.stop
    number, _, taken, refused = struct.unpack(PLACE, place[:])
    _keep(root / "case", kept, area, seed, number)
    shutil.rmtree(root, ignore_errors=True)
    fault = _report(area, seed, number, str(died or "its process gave no answer"))
    return Tally(number - numbers.start + 1, taken, refused, [fault]), number + 1


def _wait(pid: int, place: mmap.mmap) -> str | int:
    """Why the process ended, where it was not by itself; the exit code of the harness's own mistakes."""
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return f"its process died ({signal.Signals(status & 127).name})" if status & 127 else status >> 8
        if time.monotonic() - struct.unpack(PLACE, place[:])[1] > REAL_SECONDS:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"hangs: no end after {REAL_SECONDS:g} s"
        time.sleep(0.05)


def _work(area: Area, numbers: range, seed: int, root: Path, kept: Path, place: mmap.mmap, show: bool) -> Tally:
    torch.set_num_threads(1)  # a pool of threads does not outlive a fork
    signal.signal(signal.SIGPROF, _too_slow)
    no_output = os.open(os.devnull, os.O_WRONLY)
    os.dup2(no_output, 2)
    os.environ["HOME"] = str(root)  # a source named ~ is no search of the user's own folder
    state = area.prepare(root)
    folder = root / "case"
    folder.mkdir()
    _run_case(area, state, seed, -1, folder)  # imports and caches are no growth
    limit = _status("VmSize") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tally = Tally()
    for number in numbers:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        place[:] = struct.pack(PLACE, number, time.monotonic(), tally.taken, tally.refused)
        _reset_peak()
        before = _status("VmRSS")
        started = time.monotonic()
        problem, where, message = _run_case(area, state, seed, number, folder)
        taken = time.monotonic() - started
        growth = _status("VmHWM") - before
        if not problem and growth > GROWTH_BYTES:
            problem = f"took {growth / 2**20:,.0f} MiB"
        tally.cases += 1
        tally.seconds += taken
        tally.growth = max(tally.growth, growth)
        if taken > tally.slowest:
            tally.slowest, tally.slowest_case = taken, number
        if problem:
            tally.faults.append(_report(area, seed, number, problem))
            _keep(folder, kept, area, seed, number)
        elif where:
            tally.refused += 1
            tally.places[where] += 1
        else:
            tally.taken += 1
        if show:
            print(f"{area.name} {number}: {(problem and 'FAULT ' + problem) or message or 'taken'}", flush=True)
    return tally


def _run_case(area: Area, state: Any, seed: int, number: int, folder: Path) -> tuple[str, str, str]:
    """The fault or nothing, where the input was refused or nothing, and in which words."""
    os.chdir(folder)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            area.case(state, random.Random(f"{seed} {area.name} {number}"), folder)
    except SystemExit as end:
        return f"left with {end.code}", "", ""
    except _TooSlow:
        return f"hangs: {CPU_SECONDS} s of computing", "", ""
    except Fault as fault:
        return str(fault)[:2000], "", ""
    except Exception as error:
        return _judged(error, area)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return _half_written(folder), "", ""


def _judged(error: Exception, area: Area) -> tuple[str, str, str]:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT)) and "/.venv/" not in frame.filename]
    last = next((frame for frame in reversed(ours) if "/tests/" not in frame.filename), frames[-1])
    where = f"{Path(last.filename).name}:{last.lineno}"
    line = failure_line("gpt2", error)
    if line is None or isinstance(error, MemoryError):
        return f"{type(error).__name__} at {where}: {str(error)[:300]!r}", where, ""
    if "not enough memory" in line:
        return f"memory at {where}: {line[:300]!r}", where, line
    return wrong_with(line, area.lines), where, line


def wrong_with(message: str, lines: int = 1) -> str:
    """What a user could not read in a message; empty where it is fine."""
    found = message.splitlines()
    if not 1 <= len(found) <= lines:
        return f"a message of {len(found)} lines: {message[:300]!r}"
    if max(map(len, found)) > LONGEST_LINE:
        return f"a line of {max(map(len, found)):,} characters: {message[:300]!r}"
    unprintable = next((c for line in found for c in line if not c.isprintable()), None)
    return f"{unprintable!r} in a message: {message[:300]!r}" if unprintable is not None else ""


def _half_written(folder: Path) -> str:
    found = [
        name for _, folders, files in os.walk(folder) for name in (*folders, *files) if name.endswith(HALF_WRITTEN)
    ]
    return f"left {found[0]!r} half-written" if found else ""


def _too_slow(*_: object) -> None:
    raise _TooSlow


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    with open("/proc/self/status", "rb") as handle:  # noqa: PTH123  # thousands of times
        content = handle.read()
    at = content.index(key.encode()) + len(key) + 1
    return int(content[at : content.index(b"kB", at)]) * 1024


def _report(area: Area, seed: int, number: int, problem: str) -> str:
    return f"{problem}\n      again: python -m tests.harness.fuzz --only {area.name} --seed {seed} --case {number}"


def _keep(folder: Path, kept: Path, area: Area, seed: int, number: int) -> None:
    target = kept / f"{area.name}-{seed}-{number}"
    shutil.rmtree(target, ignore_errors=True)
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(folder, target, symlinks=True, ignore=_special)


def _special(folder: str, names: list[str]) -> list[str]:
    """Pipes are not copied: to open one is to wait for somebody."""
    paths = [(name, Path(folder, name)) for name in names]
    return [name for name, path in paths if not (path.is_symlink() or path.is_file() or path.is_dir())]
