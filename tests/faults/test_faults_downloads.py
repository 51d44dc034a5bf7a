"""Weights from a hub and from a registry that break off, answer late or send something else."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.storage.files import sha256_file
from gpt2ops.registry.download import BEST_CHECKPOINT, WEIGHTS, checkpoint_directory

ROOT = Path(__file__).parents[2]
COMMIT = "c" * 40
LOAD = "from gpt2core.model import GPT; print(GPT.from_pretrained('gpt2').num_parameters())"


def facts(file: Path) -> dict[str, Any]:
    """What a hub says of a file; of a large one its sha256."""
    known = {"size": file.stat().st_size, "oid": hashlib.sha1(file.read_bytes()).hexdigest()}
    lfs = {"oid": sha256_file(file), "size": file.stat().st_size, "pointerSize": 130}
    return known | ({"lfs": lfs} if file.name == WEIGHTS else {})


class Hub(ThreadingHTTPServer):
    """As much of a hub as a download needs; `faults` of the weights are used up one a request."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: list[str] = []
        self.silent = 0  # so many requests of any kind get no answer
        self.ranges: list[str | None] = []


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        if self.server.silent:
            self.server.silent -= 1
            self.connection.close()
            return
        if self.path.startswith("/api/"):
            files = [self.server.folder / name for name in ("config.json", WEIGHTS)]
            answer: Any = {"id": "openai-community/gpt2", "sha": COMMIT}
            answer["siblings"] = [{"rfilename": file.name} for file in files]
            if "/tree/" in self.path:
                answer = [{"type": "file", "path": file.name, **facts(file)} for file in files]
            self.send(json.dumps(answer).encode(), {"Content-Type": "application/json"}, body=True)
            return
        file = self.server.folder / Path(self.path).name
        content, large = file.read_bytes(), file.name == WEIGHTS
        known = facts(file)
        tag = known["lfs"]["oid"] if large else known["oid"]
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        self.send(content, headers, body=body, large=large)

    def send(self, content: bytes, headers: dict[str, str], *, body: bool, large: bool = False) -> None:
        fault = ""
        start = 0
        if body and large:
            asked = self.headers.get("Range")
            self.server.ranges.append(asked)
            fault = self.server.faults.pop(0) if self.server.faults else ""
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
            if fault == "damaged":
                content = bytes([content[0]]) + content[1:-1] + bytes([content[-1] ^ 255])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        content = content[start:]
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if fault == "drop" else content)
            self.wfile.flush()
        if fault == "drop":
            self.connection.close()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    # 26 MB: the hub's client writes blocks of 10 MB, and what is less than one is asked for again.
    GPT(GPTConfig(50257, 16, n_layer=1, n_head=1, n_embd=128)).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(weights) -> Iterator[Hub]:
    server = Hub(weights)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def load(hub: Hub, home: Path) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize("faults", [["drop"], ["damaged"]])
def test_weights_that_break_off_or_come_damaged_are_fetched_again(hub, tmp_path, faults) -> None:
    hub.faults = list(faults)
    hub.silent = 1
    result = load(hub, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().isdigit()
    assert len(hub.ranges) == 2
    assert (hub.ranges[1] is not None) == (faults == ["drop"])  # it goes on where it broke off
    hub.silent = 10**6
    assert load(hub, tmp_path).returncode == 0  # and from then on nobody needs the hub


class Store:
    """What `download_artifacts` does of a client, by a script: an error, damaged weights, or the weights."""

    def __init__(self, weights: Path, script: list[str]) -> None:
        self.weights, self.script = weights, script

    def download_artifacts(self, run_id: str, path: str, target: str) -> str:
        act = self.script.pop(0)
        if act == "error":
            raise ConnectionError("Max retries exceeded with url")
        directory = Path(target) / path
        shutil.copytree(self.weights, directory, dirs_exist_ok=True)
        if act == "damaged":
            with (directory / WEIGHTS).open("r+b") as handle:
                handle.seek(-1, os.SEEK_END)
                handle.write(b"?")
        return str(directory)


@pytest.fixture
def remote(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GPT2_PROJECT_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://127.0.0.1:9/mlflow")
    return tmp_path


def test_registered_weights_are_fetched_again_until_they_are_those_that_were_registered(
    weights, remote, capsys
) -> None:
    sha256 = sha256_file(weights / WEIGHTS)
    store = Store(weights, ["error", "damaged", "whole"])
    directory = checkpoint_directory(store, "run", sha256, "models:/gpt2@champion", pause_seconds=0.01)
    assert directory == remote / "mlruns/downloads/run" / BEST_CHECKPOINT
    said = capsys.readouterr().out
    assert "no answer; trying again in 0.01 s" in said
    assert "is damaged" in said
    assert checkpoint_directory(store, "run", sha256, "models:/gpt2@champion") == directory  # not fetched again


def test_registered_weights_that_stay_damaged_are_refused_by_name(weights, remote) -> None:
    store = Store(weights, ["damaged"] * 4)
    with pytest.raises(
        UserError, match=r"^uri \('models:/gpt2@champion'\): .*model\.safetensors is damaged: its sha256 is "
    ):
        checkpoint_directory(store, "run", sha256_file(weights / WEIGHTS), "models:/gpt2@champion", pause_seconds=0.01)
