"""What an error of the MLflow store means, and how it is said in a line."""

import re

from gpt2core.errors import UserError
from gpt2ops.process.redact import redact

_AWAY = re.compile(
    r"Max retries exceeded|timeout exception|timed out|Connection (refused|reset|aborted)|database is locked"
    r"|error code (408|429|5\d\d)|too many (429|5\d\d) error responses"
)


class StoreAwayError(UserError):
    """The store does not answer now, though nothing says that it is wrong. `reason` is why, in a few words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def is_away(error: BaseException) -> bool:
    """Whether the error means that the store does not answer now, not that it, its address or a request is wrong."""
    text = str(error)
    return isinstance(error, StoreAwayError) or (bool(_AWAY.search(text)) and "SSLError" not in text)


def one_line(error: BaseException) -> str:
    """The first line of an error, safe to show."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # requests wraps a refused connection in four names of its own.
    for sign, words in (
        ("error code 401", "it wants a login"),
        ("Max retries exceeded", "no answer"),
        ("timeout exception", "no answer in time"),
    ):
        if sign in lines[0]:
            return words
    return redact(lines[0])[:300]
