"""As much of a hub as an upload needs: repositories, LFS objects and commits, in memory, on loopback."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a_token_that_must_not_be_shown"


class Hub(ThreadingHTTPServer):
    """`files` are what commits put into repositories, by `OWNER/NAME/FILE`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")  # a closed hub must not answer on a connection kept open
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        repo_id = self.path.removeprefix("/api/models/").partition("/revision")[0].partition("?")[0]
        if repo_id in self.server.repositories:
            self._answer(200, {"id": repo_id, "sha": "0" * 40, "siblings": [], "tags": []})
        else:
            self._answer(404, {"error": f"no such thing: {self.path}"})

    def do_PUT(self) -> None:
        content = self._body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            self._answer(400, {"error": "another content"})
            return
        self.server.objects[oid] = content
        self._answer(200, {})

    def do_POST(self) -> None:
        content = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            asked = json.loads(content)
            repo_id = f"{asked.get('organization', 'me')}/{asked['name']}"
            if asked.get("organization") == "somebody-else":
                self._answer(403, {"error": "You have no rights there."})
                return
            self.server.repositories.setdefault(repo_id, asked)
            self._answer(200, {"url": f"{self.server.address}/{repo_id}", "name": repo_id, "id": repo_id})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "shouldIgnore": False, "uploadMode": _mode(file["path"])}
                for file in json.loads(content)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.server.address}/lfs/{wanted['oid']}"}}}
                for wanted in json.loads(content)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            repo_id = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            self._commit(repo_id, [json.loads(line) for line in content.splitlines() if line])
        else:
            self._answer(404, {"error": f"no such thing: {self.path}"})

    def _commit(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[f"{repo_id}/{value['path']}"] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[f"{repo_id}/{value['path']}"] = self.server.objects[value["oid"]]
        self._answer(200, {"commitUrl": f"{self.server.address}/{repo_id}/commit/1", "commitOid": "1" * 40})


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".bin")) else "regular"
