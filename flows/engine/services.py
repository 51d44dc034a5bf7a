"""Child processes of `flows.serve`: started with a log each, checked, and stopped in reverse order.

They and their descendants carry the mark of gpt2ops/process/served.py, by which they are found after a kill.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpt2core.errors import UserError
from gpt2ops.process.served import served_mark, served_processes
from gpt2ops.process.signals import is_alive

# Environment variable of a flow run: the URL of the MLflow server that was started with its worker.
MLFLOW_PAGE = "GPT2_MLFLOW_PAGE"
_START_SECONDS = 120.0
_STOP_SECONDS = 40.0
_COMMAND_LENGTH = 120


@dataclass
class Service:
    """A child process, and its log file unless it writes to this process's output."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path | None

    def tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if self.log else []
        return f"{lines[-1]} (log: {self.log})" if lines else "see its output above"


class Services:
    """Services in order of their start; `stop` ends them in reverse order."""

    def __init__(self, directory: Path, logs: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._logs = logs
        self.environment = {**environment, **served_mark(directory)}
        self._running: list[Service] = []

    def start(self, name: str, *command: str, own_log: bool = True) -> Service:
        log = self._logs / f"{name}.log" if own_log else None
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("wb") if log else None
        try:
            # A new session: Ctrl-C in the terminal then reaches only this process, which stops the others in order.
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
        # Descendants of a killed service have no parent any more.
        end([process for process, server in served_processes(self._directory) if server == os.getpid()])


def listener(port: int) -> str | None:
    """The process that listens at a port, as `process 123 (its command)`; None where it is unknown."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.pid and connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,):
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} ({command[:_COMMAND_LENGTH]})"
    except psutil.Error:
        pass
    return None


def end(processes: Sequence[psutil.Process]) -> None:
    """SIGTERM, time to stop (a training saves a checkpoint), then SIGKILL for the rest."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    while (alive := [process for process in processes if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM to a process, time to stop for it and its descendants, then SIGKILL for the rest."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
    for left in alive:
        left.kill()
    process.wait()
