"""Secrets in addresses: removed from what is shown or stored, filled in from environment variables on use."""

import os
import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from gpt2core.errors import UserError

SECRET_PREFIX = "GPT2_SECRET_"  # of the environment variables that an address may name; no other is ever sent
_SECRET = re.compile(rf"\$\{{({SECRET_PREFIX}\w+)\}}")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
# Between :// and the host. A slash may be in a password for SQLAlchemy and S3; in a web address it starts the path.
_LOGIN = re.compile(
    rf"(?<=://)(?![\w.~-]*:?{_SECRET.pattern}@)(?:[^/?#\s]*@|(?<!http://)(?<!https://)[^/\s@:]*:[^\s@]*@)", re.I
)
# Of a web address with a /, ? or # in its password, so that what follows the colon is no port, or with a slash missing.
_ODD_LOGIN = re.compile(r"(https?:/{0,3})[^/?#\s@:]*:(?!\d*(?:[/?#\s]|$))(?!\$\{)[^\s'\"]*@", re.I)
_WEB = re.compile(r"https?:/[^\s'\"<>]+", re.I)
_VALUE = re.compile(r"([?&#;])([^=?&#;\s'\"<>]+)=([^&#;\s'\"<>]+)")
_PRIVATE = re.compile(r"token|key|sig|secret|pass|pwd|credential|auth|jwt|sas", re.I)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_PLAIN = re.compile("[^?&=;#%]*")  # a decoded value without a second query in it, however encoded
# Names of query parameters that hold no secret.
PUBLIC = {
    "alt", "branch", "dl", "download", "expires", "export", "filename", "format", "id", "lang", "language", "limit",
    "name", "offset", "page", "part", "path", "raw", "ref", "rev", "revision", "sort", "sv", "type", "usp", "v",
    "version",
}  # fmt: skip


def redact(text: str) -> str:
    """`text` without Hugging Face tokens and without what may be a secret in an address.

    That is `user:password@`, and in web addresses the value of every query parameter outside `PUBLIC`.
    """
    text = _ODD_LOGIN.sub(r"\1", _LOGIN.sub("", text))
    text = _WEB.sub(lambda address: _VALUE.sub(_without_unknown, address[0]), text)
    return _HUB_TOKEN.sub("hf_REDACTED", _VALUE.sub(_without_private, text))


def _without_unknown(match: re.Match[str]) -> str:
    known = _is_public(unquote(match[2]), unquote(match[3])) or _SECRET.fullmatch(match[3])
    return match[0] if known else f"{match[1]}{match[2]}=REDACTED"


def _without_private(match: re.Match[str]) -> str:
    private = _PRIVATE.search(unquote(match[2])) and not _SECRET.fullmatch(match[3])
    return f"{match[1]}{match[2]}=REDACTED" if private else match[0]


def _is_public(name: str, value: str) -> bool:
    return name.lower() in PUBLIC and _PLAIN.fullmatch(value) is not None


def check_no_secret(url: str, key: str) -> None:
    """Raises UserError where the address `url`, the value of the setting `key`, may contain a secret."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UserError(f"{key} ({place(url)!r}) is not a valid address; check its host and port.") from None
    other = [name for name in _VARIABLE.findall(url) if not name.startswith(SECRET_PREFIX)]
    if other:
        raise UserError(
            f"{key} names the environment variable {other[0]}, but only those that begin with {SECRET_PREFIX} are "
            f"sent; rename it to {SECRET_PREFIX}{other[0]}, here and in the environment."
        )
    login, at, _ = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    if at and not _SECRET.fullmatch(password if colon else user):
        raise UserError(f"{key} ({place(url)}) holds a password, which {_IS_KEPT}")
    if parts.port is not None and "@" in parts.path:  # http://me:12/secret@host: a password may begin like a port
        shown = f"{parts.scheme}://{parts.path.rpartition('@')[2]}"
        raise UserError(f"{key} ({place(shown)}) has an @ behind what may be a password; write it as %40.")
    parameters = parts.path.partition(";")[2]
    pairs = [pair for text in (parts.query, parts.fragment, parameters) for pair in _pairs(text)]
    for name, value in pairs:
        if not (_is_public(name, value) or _SECRET.fullmatch(value or name)):
            what = f"a value of `{name}`" if value else "a query"
            raise UserError(f"{key} ({place(url)}) has {what}, which may be a secret and which {_IS_KEPT}")


_IS_KEPT = (
    f"params.yaml, dvc.lock and git would keep: set an environment variable, such as {SECRET_PREFIX}CORPUS, to it and "
    f"write ${{{SECRET_PREFIX}CORPUS}} in its place."
)


def place(url: str) -> str:
    """Host and path, the parts of an address that may be shown where it is refused."""
    path = re.split(r"[?#;]", redact(url))[0]
    return re.sub(r"(//[^/]*?):[^/\]]*(?=/|$)", r"\1", path)


def _pairs(query: str) -> list[tuple[str, str]]:
    return [pair for part in query.split(";") for pair in parse_qsl(part, keep_blank_values=True)]


def secrets_named(url: str) -> list[str]:
    """The environment variables that `filled_in` would put into the address."""
    return _SECRET.findall(url)


def filled_in(url: str, key: str) -> str:
    """`url` with the environment variable in place of each `${GPT2_SECRET_…}`, percent-encoded in user and password.

    Raises UserError where the variable is not set.
    """
    host = urlsplit(url).netloc
    login_end = url.index(host) + max(host.rfind("@"), 0)

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise UserError(
                f"{key}: the environment variable {match[1]} is not set; set it to the secret of this address."
            )
        return quote(found, safe="") if match.start() < login_end else found

    return _SECRET.sub(value, url)
