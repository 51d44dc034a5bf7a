"""Secrets in addresses: taken out of what is shown or kept, filled in from the environment where they are used."""

import os
import re
from urllib.parse import parse_qsl, quote, urlsplit

from gpt2core.errors import UserError

# Between :// and the host. A password with a slash is one to SQLAlchemy and S3, to a web address it is a path.
_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@|(?<!http://)(?<!https://)(?<=://)[^/\s@:]*:[^\s@]*@", re.I)
_NAMES = r"token|key|sig|secret|passw|pwd|credential|auth"
_IN_QUERY = re.compile(rf"([?&#;][\w.-]*(?:{_NAMES})[\w.-]*)=[^&#;\s'\"]+", re.I)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
# What is surely one: `author` or `signed` is none.
_SURE = re.compile(r"(?:.*[-_.])?(?:\w*(?:token|secret|passw\w*|signature|credentials?|key|keyid)|pwd|sig|auth)", re.I)
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def redact(text: str) -> str:
    """`text` without the hub's tokens and the secrets of addresses: `user:password@`, tokens, keys and signatures."""
    return _HUB_TOKEN.sub("hf_REDACTED", _IN_QUERY.sub(r"\1=REDACTED", _LOGIN.sub("", text)))


def check_no_secret(url: str, key: str) -> None:
    """Raises UserError for an address with a secret in it, which the file of `key` must not hold."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UserError(f"{key} ({redact(url)!r}) is not a valid address: {error}.") from None
    login, at, _ = parts.netloc.rpartition("@")
    words = [login] if at else []
    words += [value for name, value in parse_qsl(parts.query) if _SURE.fullmatch(name)]
    if any(not _VARIABLE.search(word) for word in words):
        raise UserError(
            f"{key} ({redact(url)}) holds a password or token, which params.yaml, dvc.lock and git would keep: set an "
            f"environment variable, such as CORPUS_SECRET, to it and write ${{CORPUS_SECRET}} in its place."
        )


def filled_in(url: str, key: str) -> str:
    """`url` with each `${NAME}` as the environment has it, coded where it is of a login; else as it stands.

    Raises UserError where the environment has none.
    """
    host = urlsplit(url).netloc
    end = url.index(host) + max(host.rfind("@"), 0)  # of the login

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise UserError(f"{key}: the environment variable {match[1]} is not set; set it to what belongs there.")
        return quote(found, safe="") if match.start() < end else found

    return _VARIABLE.sub(value, url)
