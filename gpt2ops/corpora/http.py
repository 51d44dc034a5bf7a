"""Downloads a file over http(s): streamed to disk, with retries, and resumed after an interruption."""

import hashlib
import ipaddress
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from gpt2core.errors import UserError
from gpt2core.storage.files import sha256_file
from gpt2ops.pipeline import paths
from gpt2ops.process.console import progress_bar, say
from gpt2ops.process.redact import redact

if TYPE_CHECKING:
    import requests

DOWNLOADS = paths.RAW.parent / ".downloads"
BLOCK_BYTES = 1 << 16
FREE_SHARE = 0.9  # of the free space: the largest download, unless told
TIMEOUT_SECONDS = (10, 60)  # for the connection, and between two blocks
# Consecutive failures without progress.
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class _TransientError(Exception):
    """A failure that a retry may solve."""


class _TooLargeError(Exception):
    """More than may be kept."""


def download(
    url: str,
    folder: Path,
    sha256: str | None,
    *,
    shown: str | None = None,
    max_bytes: int | None = None,
    pause_seconds: float = FIRST_PAUSE_SECONDS,
) -> Path:
    """Download `url` to a file in `folder`; returns its path. The next call resumes an interrupted download.

    `shown` stands for the URL in messages, if the URL has a secret. `max_bytes`: None for most of the free space.
    Raises UserError if the server cannot be reached or refuses, sends more than may be kept, redirects to where a text
    is not expected (another machine's or this one's private address), or the content does not have this `sha256`.
    """
    shown = redact(url) if shown is None else shown
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / partial_name(shown)
    resumed = target.exists()
    limit = max_bytes or int(FREE_SHARE * shutil.disk_usage(folder).free) + (target.stat().st_size if resumed else 0)
    _fetch(url, shown, target, limit, pause_seconds)
    found = sha256_file(target) if sha256 else None
    if found != sha256 and resumed:
        # The earlier part may belong to another version of the file.
        target.unlink()
        _fetch(url, shown, target, limit, pause_seconds)
        found = sha256_file(target)
    if found != sha256:
        target.unlink()
        raise UserError(f"{shown}: sha256 is {found}, expected {sha256}; check data.source and data.sha256.")
    return target


def partial_name(shown: str) -> str:
    """Name of the file that an interrupted download leaves."""
    return f"{hashlib.sha256(shown.encode()).hexdigest()[:16]}.partial"


def _fetch(url: str, shown: str, target: Path, limit: int, pause_seconds: float) -> None:
    """Complete the file `target` with the content of `url`."""
    failures, etag = 0, None
    while True:
        before = target.stat().st_size if target.exists() else 0
        try:
            etag = _transfer(url, shown, target, limit, before, etag)
            return
        except _TooLargeError as error:
            target.unlink(missing_ok=True)
            raise UserError(
                f"{shown} has {error} bytes, and no more than {limit:,} may be downloaded; free space, or set "
                "data.max_bytes."
            ) from None
        except _TransientError as error:
            progressed = target.exists() and target.stat().st_size > before
            failures = 1 if progressed else failures + 1
            if failures >= ATTEMPTS:
                raise UserError(
                    f"cannot download {shown} ({error}); without a network, get the file elsewhere and set "
                    "data.source to its local path."
                ) from None
            pause = pause_seconds * 2 ** (failures - 1)
            say(f"{urlsplit(url).hostname}: {error}; trying again in {pause:g} s")
            time.sleep(pause)


def _transfer(url: str, shown: str, target: Path, limit: int, done: int, etag: str | None) -> str | None:
    """One request for the content after `done` bytes; returns its ETag."""
    import requests
    import urllib3

    headers = {"Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if etag:
            headers["If-Range"] = etag
    try:
        check = {"response": lambda response, **_: _check_redirect(url, shown, response)}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS, hooks=check) as response:
            total = _total_bytes(response.headers.get("Content-Range", ""))
            if response.status_code == 416 and total == done:
                return etag
            served = response.headers.get("Content-Range", "")
            misplaced = response.status_code == 206 and not served.startswith(f"bytes {done}-")
            if response.status_code == 416 or misplaced:
                target.unlink()
                raise _TransientError("the part on disk does not match the file on the server")
            if response.status_code in TRANSIENT_STATUS:
                raise _TransientError(f"status {response.status_code}")
            if response.status_code not in (200, 206):
                raise UserError(
                    f"{shown}: the server answers {response.status_code} {response.reason}; check data.source."
                )
            _save(response, target, limit, done if response.status_code == 206 else 0)
            return response.headers.get("ETag")
    except UserError:
        raise
    except requests.exceptions.InvalidSchema:
        raise UserError(
            f"{shown} redirects to a URL that is not http or https; download the file by other means."
        ) from None
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects, ValueError) as error:
        # The message of requests contains the URL.
        raise UserError(f"{shown} cannot be followed ({type(error).__name__}); check data.source.") from None
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ConnectionError) as error:
        raise _TransientError(_reason(error)) from error


def _check_redirect(url: str, shown: str, response: "requests.Response") -> None:
    """Raises UserError, before it is followed, for a redirect that whoever wrote `url` cannot have meant."""
    if not response.is_redirect:
        return
    target = urljoin(response.url, response.headers["Location"])
    if url.startswith("https:") and target.startswith("http:"):
        raise UserError(f"{shown} redirects to {_without_query(target)}, which is not encrypted; use that URL itself.")
    if _is_private(target) and not _is_private(url):
        raise UserError(
            f"{shown} redirects to {_without_query(target)}, an address of this machine or of a private network; "
            "if you want its content, use that URL itself."
        )


def _is_private(url: str) -> bool:
    """Whether the address is not one of the public internet."""
    host = urlsplit(url).hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False  # it cannot be reached either
    return any(not _is_global(address.partition("%")[0]) for address in found)


def _is_global(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_global


def _without_query(url: str) -> str:
    """A URL from a server, without its query, which often is a signature."""
    return redact(urlsplit(url)._replace(query="", fragment="").geturl())


def _save(response: "requests.Response", target: Path, limit: int, done: int) -> None:
    length = response.headers.get("Content-Length")
    expected = done + int(length) if length and length.isdigit() else None
    if expected is not None and expected > limit:
        raise _TooLargeError(f"{expected:,}")
    bar = progress_bar(f"download {target.name[:8]}", total=expected, unit="B")
    bar.update(done)
    with target.open("ab" if done else "wb") as handle, bar:
        for block in response.raw.stream(BLOCK_BYTES, decode_content=False):
            if handle.tell() + len(block) > limit:
                raise _TooLargeError(f"over {limit:,}")
            handle.write(block)
            bar.update(len(block))
    if expected is not None and target.stat().st_size != expected:
        raise _TransientError(f"received {target.stat().st_size} of {expected} bytes")


def _total_bytes(content_range: str) -> int | None:
    """The file's size in a Content-Range such as `bytes 5-9/10` or `bytes */10`."""
    size = content_range.rpartition("/")[2]
    return int(size) if size.isdigit() else None


def _reason(error: Exception) -> str:
    """The innermost cause in a few words, without the wrappers of requests and urllib3."""
    text = str(error)
    for sign, reason in (
        ("NameResolutionError", "the host name cannot be resolved"),
        ("Connection refused", "connection refused"),
        ("timed out", "timed out"),
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is not trusted"),
        ("ProxyError", "the proxy refused the connection"),
        ("IncompleteRead", "the connection was interrupted"),
        ("Connection aborted", "the connection was interrupted"),
    ):
        if sign in text:
            return reason
    return type(error).__name__
