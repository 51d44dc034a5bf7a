"""Runs a whole pipeline with a password in every address, and looks for it in all that was written and said.

`python -m tests.support.secret_run`: a text behind a login and a token, and an MLflow server behind a login
(it needs the package Flask-WTF, as `mlflow[auth]` brings it). Some minutes; exit code 1 where a secret is found.
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

from tests.support.small_project import TINY, Project, copy_sources

START_SECONDS = 180
USER, ADMIN = "reader", "admin"


class TextServer(ThreadingHTTPServer):
    """One text for whoever knows the password and the token."""

    def __init__(self, content: bytes, password: str, token: str) -> None:
        super().__init__(("127.0.0.1", 0), TextHandler)
        self.content, self.token = content, token
        self.login = "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()
        self.asked = self.served = 0


class TextHandler(BaseHTTPRequestHandler):
    server: TextServer

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == self.server.login and f"token={self.server.token}" in self.path
        body = self.server.content if known else b"who are you?"
        self.server.asked += 1
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
    options = {"port": port, "workers": 1, "backend-store-uri": "sqlite:///mlflow.db", "artifacts-destination": "./a"}
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
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
    """Files below `folder` that hold one of the words, also as a header has it; databases are read as bytes."""
    needles = [word.encode() for word in words]
    needles += [base64.b64encode(f"{user}:{word}".encode()) for word in words for user in (USER, ADMIN)]
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [f"{path.relative_to(folder)}: {needle.decode()}" for needle in needles if needle in content]
    return found


def look(root: Path, folder: Path) -> list[str]:
    """Run the pipeline and the commands that speak of stores; what was found wrong, a line each."""
    password, token, admin = (f"{name}-{secrets.token_hex(8)}" for name in ("password", "token", "admin"))
    copy_sources(root)
    text = (root / "data/corpus/tiny.txt").read_bytes()
    wrong: list[str] = []
    with text_server(text, password, token) as texts, mlflow_server(folder / "server", admin) as mlflow:
        source = f"http://{USER}:${{GPT2_SECRET_PASSWORD}}@127.0.0.1:{texts.server_port}/tiny.txt?token=${{GPT2_SECRET_TOKEN}}"
        data = {**TINY["data"], "source": source, "sha256": hashlib.sha256(text).hexdigest()}
        project = Project(root, {**TINY, "data": data})
        project.git("init", "-q")
        secret = {"GPT2_SECRET_PASSWORD": password, "GPT2_SECRET_TOKEN": token}
        in_address = {"MLFLOW_TRACKING_URI": f"http://{ADMIN}:{admin}@{mlflow}"}
        by_name = {"MLFLOW_TRACKING_URI": f"http://{mlflow}"}
        login = {"MLFLOW_TRACKING_USERNAME": ADMIN, "MLFLOW_TRACKING_PASSWORD": admin}
        gpt2 = [sys.executable, "-c", "from gpt2ops.cli.main import main; main()"]
        steps: list[tuple[str, list[str], dict[str, str], int]] = [
            ("no login", ["dvc", "repro"], {**secret, **by_name}, 255),
            ("a wrong login", [*gpt2, "runs"], {**by_name, **login, "MLFLOW_TRACKING_PASSWORD": "x" + admin}, 1),
            ("the pipeline", ["dvc", "repro"], {**secret, **in_address}, 0),
            ("a stage again, by name", ["dvc", "repro", "-f", "-s", "evaluate"], {**secret, **by_name, **login}, 0),
            ("runs", [*gpt2, "runs"], in_address, 0),
            ("models", [*gpt2, "models", "list"], {**by_name, **login}, 0),
            ("doctor", [*gpt2, "doctor"], in_address, -1),
            ("relocate", [*gpt2, "relocate"], in_address, 1),
            ("gc", [*gpt2, "gc"], in_address, 0),
            ("a model", [*gpt2, "generate", "--model", "models:/gpt2@nobody", "--prompt", "A"], in_address, 1),
        ]
        for name, command, environment, code in steps:
            started = time.monotonic()
            project.environment.update(environment)
            done = project.run(*command, check=False)
            for key in environment:
                del project.environment[key]
            said = done.stdout + done.stderr
            print(f"{name}: exit code {done.returncode}, {time.monotonic() - started:.0f} s", flush=True)
            if code not in (-1, done.returncode) or "Traceback" in said:
                wrong.append(f"{name}: exit code {done.returncode}\n{said[-3000:]}")
            wrong += [f"{name} says {word}" for word in (password, token, admin) if word in said]
    # The server's own database of users has the administrator's password as a hash only.
    wrong += places_of([password, token, admin], folder)
    return wrong


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "project").mkdir()
        wrong = look(folder / "project", folder)
    for line in wrong:
        print(line)
    print(f"{len(wrong)} places with a secret, or failures")
    return min(len(wrong), 1)


if __name__ == "__main__":
    sys.exit(main())
