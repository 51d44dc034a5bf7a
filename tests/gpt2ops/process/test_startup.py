"""Importing this project changes nothing in the process; what a stage changes at its start, it asks for."""

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from gpt2ops.process.startup import end_imports, quick_imports

ROOT = Path(__file__).resolve().parents[3]
# In a process that looks as if it were `python -m tasks.finetune`. Libraries come first: some change what they like.
IMPORT_ALL = """
import gc, importlib, json, logging, os, pkgutil, signal, sys, threading
from importlib.util import find_spec
for library in ("torch", "torch._dynamo", "mlflow.pyfunc", "mlflow.pytorch", "prefect", "dvc.repo", "gradio", "pandas",
                "matplotlib.pyplot", "datasets"):
    importlib.import_module(library)

def state():
    return {
        "excepthook": sys.excepthook,
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "gc": (gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "sys.path": list(sys.path),
        "threads": set(threading.enumerate()),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "logging": (list(logging.root.handlers), logging.root.level),
        "torch": (sys.modules["torch"].get_num_threads(), sys.modules["torch"].get_default_dtype()),
        "started anew": list(started),
    }

started = []
os.execve = lambda *arguments: started.append(arguments)
sys.argv[0], sys.orig_argv = "-m", [sys.executable, "-m", "tasks.finetune"]
before, changes, modules = state(), [], 0
def look(name):
    global before, modules
    importlib.import_module(name)
    after, modules = state(), modules + 1
    changes.extend([name, key] for key in after if after[key] != before[key])
    before = after

for package in ("gpt2core", "gpt2ops", "tasks", "flows"):
    look(package)
    for found in pkgutil.walk_packages(sys.modules[package].__path__, package + "."):
        if find_spec("triton") or not found.name.endswith(".rows.fused"):  # it comes with PyTorch's CUDA build
            look(found.name)
print(json.dumps({"modules": modules, "changes": changes}))
"""


def test_importing_any_module_changes_nothing_in_the_process() -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, env=plain, capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["modules"] >= 100
    assert seen["changes"] == []


CTRL_C = """
import os, signal, sys
from gpt2ops.process.startup import end_imports, start_process
start_process()
if sys.argv[1] == "after":
    end_imports()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    if sys.argv[1] == "while":
        raise ImportError("a library makes another error of it") from None
    raise
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("moment", ["while", "after"])
def test_ctrl_c_while_libraries_are_imported_and_after_is_one_line(moment: str) -> None:
    done = subprocess.run([sys.executable, "-c", CTRL_C, moment], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_an_error_after_the_start_keeps_its_traceback() -> None:
    program = "from gpt2ops.process.startup import start_process; start_process(); raise RuntimeError('a bug')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("RuntimeError: a bug\n")


def test_a_process_that_did_not_ask_for_the_start_is_left_as_it_is() -> None:
    before = gc.isenabled(), gc.get_freeze_count(), signal.getsignal(signal.SIGINT), sys.excepthook
    end_imports()
    assert (gc.isenabled(), gc.get_freeze_count(), signal.getsignal(signal.SIGINT), sys.excepthook) == before


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
    done = subprocess.run(
        [sys.executable, "-m", "tasks.evaluate"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("evaluate: error: ")
    assert done.stdout == "True True\n"
