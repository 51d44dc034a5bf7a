"""Who can reach what we start: this machine only, unless its user says otherwise; a login is used where one is set."""

import ast
import base64
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import serve
from flows.engine import pool
from gpt2core.errors import UserError
from gpt2ops.store.client import connect

ROOT = Path(__file__).resolve().parents[2]
EVERYWHERE = re.compile(r"(?<![\d.])0\.0\.0\.0(?![\d.])|--host \"?::")
TEXTS = [
    *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "Makefile", ROOT / "prefect.toml", ROOT / "prefect.yaml",
    *(file for package in ("flows", "gpt2core", "gpt2ops", "tasks") for file in (ROOT / package).rglob("*.py")),
]  # fmt: skip
# A place that listens everywhere stands beside what it needs.
WITH_LOGIN = re.compile(r"--auth me:secret|GPT2_APP_AUTH|needs a login|basic-auth|PREFECT_SERVER_API_AUTH_STRING")


def test_every_address_that_listens_is_loopback_or_stands_beside_a_login() -> None:
    found = [
        (file.relative_to(ROOT).as_posix(), line.strip())
        for file in TEXTS
        if file.is_file()
        for line in file.read_text(encoding="utf-8").splitlines()
        if EVERYWHERE.search(line) and not WITH_LOGIN.search(line) and not WITH_LOGIN.search(line)
    ]
    assert found == []


def test_the_servers_that_make_serve_starts_are_told_to_listen_here_only() -> None:
    assert serve.HOST == "127.0.0.1"
    calls = [node for node in ast.walk(ast.parse((ROOT / "flows/serve.py").read_text())) if isinstance(node, ast.Call)]
    starts = [ast.unparse(call) for call in calls if ast.unparse(call.func) == "services.start"]
    servers = [line for line in starts if "server'" in line]
    assert len(servers) == 2
    assert all("'--host', HOST" in line for line in servers)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"me:sec:ret").decode()
        self.send_response(200 if known else 401)
        body = b"{}" if known else b"You are not authenticated."
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.mark.parametrize("name", ["PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"])
def test_a_login_of_prefects_server_is_used(name, api, monkeypatch) -> None:
    for other in ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
        monkeypatch.delenv(other, raising=False)
    with pytest.raises(OSError, match="401"):
        pool.request("GET", api)
    monkeypatch.setenv(name, "me:sec:ret")
    assert pool.request("GET", api) == {}


def test_an_mlflow_server_behind_a_login_is_used_with_one_and_refused_in_a_line_without(api, monkeypatch) -> None:
    address = api.removesuffix("/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(UserError) as error:
        connect()
    assert str(error.value) == (
        f"cannot use the MLflow store {address} (it wants a login); set MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD to a login that it knows."
    )
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sec:ret")
    connect()
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("://", "://me:sec%3Aret@"))
    connect()
