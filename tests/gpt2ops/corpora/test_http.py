import hashlib
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gpt2core.errors import UserError
from gpt2ops.corpora.http import ATTEMPTS, download

CONTENT = b"".join(b"line %d of the text\n" % i for i in range(20_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT on loopback; `faults` are used up one a request."""

    content = CONTENT
    ranges = True
    location = ""
    says_its_length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.requested: list[str | None] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        server = self.server
        server.requested.append(self.headers.get("Range"))
        fault = server.faults.pop(0) if server.faults else ""
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if asked and server.ranges and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.says_its_length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)
        self.wfile.flush()
        if fault == "drop":
            self.connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server: Server, folder: Path, sha256: str | None = SHA256) -> bytes:
    return download(server.url("a.txt"), folder, sha256, pause_seconds=0.001).read_bytes()


def test_a_file_arrives_whole(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path) == CONTENT


def test_a_dropped_connection_goes_on_where_it_broke_off(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults = ["drop", "drop"]
    assert get(server, tmp_path) == CONTENT
    half = len(CONTENT) // 2
    assert server.requested == [None, f"bytes={half}-", f"bytes={half + (len(CONTENT) - half) // 2}-"]
    assert "the connection was interrupted; trying again" in capsys.readouterr().out


def test_a_server_without_ranges_is_asked_for_the_whole_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.faults = ["drop"]
    assert get(server, tmp_path) == CONTENT


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.faults = ["503", "429", "500"]
    assert get(server, tmp_path) == CONTENT


def test_a_server_that_stays_busy_is_given_up_with_what_to_do(server: Server, tmp_path: Path) -> None:
    server.faults = ["503"] * 20
    with pytest.raises(UserError, match=r"status 503.*set data\.source to its local path") as raised:
        get(server, tmp_path)
    assert len(server.requested) == ATTEMPTS
    assert "\n" not in str(raised.value)


def test_a_missing_page_is_named_at_once(server: Server, tmp_path: Path) -> None:
    server.faults = ["404"]
    with pytest.raises(UserError, match=r"a\.txt: the server answers 404"):
        get(server, tmp_path)
    assert len(server.requested) == 1


def test_the_next_run_goes_on_with_what_an_interrupted_one_left(server: Server, tmp_path: Path) -> None:
    server.faults = ["drop", *["503"] * ATTEMPTS]
    with pytest.raises(UserError):
        get(server, tmp_path)
    server.faults, server.requested = [], []
    assert get(server, tmp_path) == CONTENT
    assert server.requested == [f"bytes={len(CONTENT) // 2}-"]


def test_what_an_interrupted_run_left_of_another_version_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    partial = download(server.url("a.txt"), tmp_path, SHA256)
    for left in (b"something else\n", CONTENT + b"longer", CONTENT[:-1] + b"X"):
        partial.write_bytes(left)
        assert get(server, tmp_path) == CONTENT


def test_a_wrong_hash_names_both_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"sha256 is {SHA256}, expected {'0' * 64}"):
        get(server, tmp_path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_redirect_to_a_file_is_refused(server: Server, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    server.location, server.faults = secret.as_uri(), ["redirect"]
    with pytest.raises(UserError, match="not http or https"):
        get(server, tmp_path / "folder", None)


def test_a_redirect_within_http_is_followed(server: Server, tmp_path: Path) -> None:
    server.location, server.faults = server.url("b.txt"), ["redirect"]
    assert get(server, tmp_path) == CONTENT


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/b.txt", "http://[::ffff:127.0.0.1]:{port}/", "http://10.0.0.1/"]
)
def test_a_redirect_from_the_internet_to_this_machine_is_not_followed(
    server: Server, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy is asked for every address, and stands for the internet here.
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "")
    server.location, server.faults = target.format(port=server.server_port), ["redirect"]
    with pytest.raises(UserError, match="an address of this machine or of a private network"):
        download("http://93.184.216.34/a.txt", tmp_path, None, pause_seconds=0.001)
    assert len(server.requested) == 1


def test_a_redirect_to_no_address_is_one_line(server: Server, tmp_path: Path) -> None:
    server.location, server.faults = "http://[::1", ["redirect"]
    with pytest.raises(UserError, match=r"cannot be followed"):
        get(server, tmp_path, None)


@pytest.mark.parametrize("says_its_length", [True, False])
def test_a_download_larger_than_its_limit_is_refused_and_leaves_nothing(
    server: Server, says_its_length: bool, tmp_path: Path
) -> None:
    server.says_its_length = says_its_length
    for limit in (1, len(CONTENT) - 1):
        with pytest.raises(UserError, match=rf"no more than {limit:,} may be downloaded.*data\.max_bytes"):
            download(server.url("a.txt"), tmp_path, None, max_bytes=limit)
        assert list(tmp_path.iterdir()) == []
    assert download(server.url("a.txt"), tmp_path, SHA256, max_bytes=len(CONTENT)).read_bytes() == CONTENT


def test_no_download_fills_the_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2ops.corpora.http.FREE_SHARE", 1000 / shutil.disk_usage(tmp_path).free)
    with pytest.raises(UserError, match="free space"):
        get(server, tmp_path)


def test_no_server_there_is_one_line_that_says_what_to_do(server: Server, tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/a.txt"
    with pytest.raises(UserError, match=r"connection refused.*set data\.source") as raised:
        download(url, tmp_path, SHA256, pause_seconds=0.001)
    assert "\n" not in str(raised.value)
