"""Libraries that gpt2core works without: a feature that needs one says in one line how to install it."""

from collections.abc import Iterator
from contextlib import contextmanager

from gpt2core.errors import UserError


@contextmanager
def needs_extra(feature: str) -> Iterator[None]:
    """Raises UserError where an import within finds that its library is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{feature} needs {error.name}, which is not installed: pip install 'gpt2-workflow[pipeline]'"
        ) from None
