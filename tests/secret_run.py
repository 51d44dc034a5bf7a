"""Runs a whole pipeline with a password in every address, and looks for it in all that was written and said.

`python -m tests.secret_run`: a text behind a login and a token, and an MLflow server behind a login (it needs the
package Flask-WTF, as `mlflow[auth]` brings it). A minute and a half on two cores; exit code 1 where a secret is found.
"""

import base64
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.small_project import TINY, Project, copy_sources

START_SECONDS = 180
USER, ADMIN = "reader", "admin"


class TextServer(ThreadingHTTPServer):
    """One text for whoever knows the password and the token."""

    def __init__(self, content: bytes, password: str, token: str) -> None:
        super().__init__(("127.0.0.1", 0), TextHandler)
        self.content, self.token = content, token
        self.login = "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()
        self.served = 0


class TextHandler(BaseHTTPRequestHandler):
    server: TextServer

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == self.server.login and f"token={self.server.token}" in self.path
        body = self.server.content if known else b"who are you?"
        self.server.served += known
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def text_server(content: bytes, password: str, token: str) -> Iterator[TextServer]:
    server = TextServer(content, password, token)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def mlflow_server(folder: Path, password: str) -> Iterator[str]:
    """`mlflow server` behind a login; its address, without one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True)
    environment = {
        **os.environ,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the MLflow server did not start:\n{(folder / 'log').read_text()}")
            time.sleep(0.3)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def places_of(words: Sequence[str], folder: Path) -> list[str]:
    """Files below `folder` that hold one of the words, also base64-coded as in a header; databases are read as bytes."""
    needles = [word.encode() for word in words]
    needles += [base64.b64encode(f"{user}:{word}".encode()) for word in words for user in (USER, ADMIN)]
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [f"{path.relative_to(folder)}: {needle.decode()}" for needle in needles if needle in content]
    return found
