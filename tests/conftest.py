"""Tests compute with small tensors: one thread is faster than two that wait for each other."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts a background job with Ctrl-C ignored, and what tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = {"test_pipeline.py", "test_flow_server.py"}  # a fixture runs a whole pipeline or starts three servers


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: the last file decides when the suite ends, and should be a short one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in LONG, item.path not in slow))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub is not asked. Its library reads the variable once, when imported, so both have to be set and unset."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium: Playwright's own, or the system's."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path).exists()
        found = None if own else shutil.which("chromium") or shutil.which("google-chrome")
        try:
            opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error:
            pytest.skip("no Chromium here: `playwright install chromium`, or install it as chromium or google-chrome")
        yield opened
        opened.close()
