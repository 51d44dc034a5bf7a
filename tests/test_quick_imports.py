"""Garbage is searched for again once a stage's libraries are there: a cycle must not keep a tensor's memory."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from tasks.quick_imports import quick_imports


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_is_left_alone_within_and_found_after() -> None:
    with quick_imports():
        assert not gc.isenabled()
        with quick_imports():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    node = weakref.ref(Node())
    gc.collect()
    assert node() is None


def test_an_import_that_fails_does_not_end_the_search_for_good() -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        raise ModuleNotFoundError
    assert gc.isenabled()


def test_a_stage_searches_once_it_works(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, gc\natexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000))\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "tasks.evaluate"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("evaluate: error: ")
    assert done.stdout == "True True\n"
