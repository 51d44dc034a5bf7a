"""A real MLflow server that goes away and comes back, and a slow or broken connection to it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from flows.serve import SERVER_ENVIRONMENT
from tests.support.waiting import wait_until


class Server:
    """A real `mlflow server` that can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                env={**os.environ, **SERVER_ENVIRONMENT},
            )  # fmt: skip
        try:
            wait_until(self._answers, self.process)
        except AssertionError as error:
            raise AssertionError((self.folder / "server.log").read_text()) from error

    def _answers(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{self.address}/health", timeout=5).ok
        return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Proxy:
    """Passes bytes on to `port`, each block of requests after `seconds`; it can go away and come back."""

    def __init__(self, port: int, seconds: float = 0.0) -> None:
        self.target, self.seconds, self.port = port, seconds, 0
        self.connections: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for connection in (self.listener, *self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.connections.clear()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.target))
        threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()
        self._pass_on(client, server, True)

    def _pass_on(self, source: socket.socket, target: socket.socket, delayed: bool) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 16):
                time.sleep(self.seconds if delayed else 0.0)
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def module_server(empty_store, tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    server = Server(folder)
    yield server
    server.kill()


@pytest.fixture
def server(module_server, bare_project, monkeypatch) -> Server:
    if module_server.process is None:
        module_server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", module_server.address)
    # A refused connection is known at once; by default it is tried again for some seconds.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return module_server


def steps(count: int) -> list[tuple[int, float]]:
    return [(step, step / 2) for step in range(count)]
