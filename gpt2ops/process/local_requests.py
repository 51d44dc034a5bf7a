"""Refuses what another site's page sends to a server on this machine.

A browser lets every page send requests to 127.0.0.1: directly, which shows in the header `Origin`, or by a name of its
own that resolves to this machine (DNS rebinding), which shows in `Host`.
"""

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class LocalRequests:
    """ASGI middleware for a server that listens on a loopback address only.

    Answers 403, to websockets too, where Host is not a loopback name or Origin is another site than Host.
    """

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        refusal = refused_header(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            body = f"This server answers pages and programs of this machine only: {refusal} is refused.\n".encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})


def refused_header(scope: Message) -> str | None:
    """The name of the header that shows a foreign page, None where there is none. Only browsers send Origin."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"host", b"origin")}
    host, origin = headers.get(b"host", ""), headers.get(b"origin")
    if not _is_loopback_name(host):
        return "Host"
    return "Origin" if origin is not None and _site(origin) != host.lower() else None


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address without a port, is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_loopback_name(host: str) -> bool:
    """Of a Host header, which may have a port."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _site(origin: str) -> str | None:
    """`host:port` of an Origin header; None where it does not parse, as for `null`."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
