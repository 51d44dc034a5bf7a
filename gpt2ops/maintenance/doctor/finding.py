"""One line of `gpt2 doctor`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

OK, LOOK, WRONG = "ok", "look", "wrong"


@dataclass(frozen=True)
class Finding:
    """`remedy` says what to do about it; empty where there is nothing to do."""

    state: str  # OK, LOOK or WRONG
    area: str
    text: str
    remedy: str = ""


Check = Callable[[], Iterable[Finding]]
