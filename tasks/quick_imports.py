"""Imports without the search for garbage, a quarter of the time that MLflow and PyTorch take; they leave none."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """No search for garbage within; nor later among what was made within, which stays to the end of the process."""
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            search_from_here()


def search_from_here() -> None:
    """Search from now on, among what is made from now on."""
    gc.freeze()
    gc.enable()
