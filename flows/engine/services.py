"""Processes that serve together: started with a log each, watched, and stopped in the reverse order.

All that they start carries a mark in its environment, by which it is found where its parents were killed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpt2core.errors import UserError

# A variable in the environment of a flow run: where the MLflow answers that was started beside it.
MLFLOW_PAGE = "GPT2_MLFLOW_PAGE"
_START_SECONDS = 120.0
_STOP_SECONDS = 40.0
_COMMAND_LENGTH = 120
_MARK = "GPT2_SERVED_BY"


@dataclass
class Service:
    """A child process with a log file of its own, where it does not write to our output."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path | None

    def tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if self.log else []
        return f"{lines[-1]} (all of it: {self.log})" if lines else "its lines are above"


class Services:
    """What was started, in order; `stop` ends it in the reverse order."""

    def __init__(self, directory: Path, logs: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._logs = logs
        self.environment = {**environment, _MARK: _mark(os.getpid(), directory)}
        self._running: list[Service] = []

    def start(self, name: str, *command: str, own_log: bool = True) -> Service:
        log = self._logs / f"{name}.log" if own_log else None
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("wb") if log else None
        try:
            # A session of its own: a Ctrl-C in the terminal then reaches us alone, and we stop the others in order.
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=self._directory, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output and subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        finally:
            if output:
                output.close()
        service = Service(name, process, log)
        self._running.append(service)
        return service

    def wait_until(self, service: Service, ready: Callable[[], bool]) -> None:
        """Raises UserError where any service ends first, or `service` is not ready in time."""
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise UserError(f"{service.name} did not answer in {_START_SECONDS:.0f} s: {service.tail()}")
            time.sleep(0.3)

    def check(self) -> None:
        for service in self._running:
            if service.process.poll() is not None:
                raise UserError(f"{service.name} ended with exit code {service.process.returncode}: {service.tail()}")

    def stop(self) -> None:
        while self._running:
            _stop(self._running.pop().process)
        # The children of a service that was killed are nobody's children now.
        end([process for process, mark in _marked() if mark == self.environment[_MARK]])


def left_over(directory: Path) -> list[psutil.Process]:
    """What a `flows.serve` of this folder left running when it was killed."""
    found = []
    for process, mark in _marked():
        pid = mark.split(" ", 1)[0]
        if pid.isdecimal() and mark == _mark(int(pid), directory) and not is_serving(int(pid)):
            found.append(process)
    return found


def is_serving(pid: int) -> bool:
    """Whether that process is there and a `flows.serve`, other than this one."""
    try:
        return pid != os.getpid() and "flows.serve" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def listener(port: int) -> str | None:
    """Who listens at a port: `process 123 (its command)`; None where the system does not tell."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.pid and connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,):
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} ({command[:_COMMAND_LENGTH]})"
    except psutil.Error:
        pass
    return None


def end(processes: Sequence[psutil.Process]) -> None:
    """SIGTERM, time to leave (a training saves its checkpoint), then SIGKILL to what is left."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    while (alive := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _runs(process: psutil.Process) -> bool:
    """A zombie does not; in a container without an init it stays for ever."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _mark(pid: int, directory: Path) -> str:
    return f"{pid} {directory}"


def _marked() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # another user's, or gone
            if process.pid != os.getpid() and (mark := process.environ().get(_MARK)):
                yield process, mark


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to a process, time to leave for it and all it started, then SIGKILL to what is left."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for left in alive:
        left.kill()
    process.wait()
