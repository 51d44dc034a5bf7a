"""What `from gpt2core import ...` gives: each name is the class or function that it promises, never a module."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import gpt2core
import gpt2core.decoding
import gpt2core.importing

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {"GPT", "GPTConfig", "PackedGPT", "Tokenizer", "Trainer", "TrainerConfig", "UserError"}
FUNCTIONS = {"evaluate", "generate", "perplexity", "stream"}
# Every submodule imported first: a module of the same name would take the place of a name that loads on first use.
IMPORT_ALL = """
import importlib, pkgutil, gpt2core
from importlib.util import find_spec
for found in pkgutil.walk_packages(gpt2core.__path__, "gpt2core."):
    if find_spec("triton") or not found.name.endswith(".rows.fused"):  # it comes with PyTorch's CUDA build
        importlib.import_module(found.name)
"""


def test_every_public_name_is_listed_here() -> None:
    assert set(gpt2core.__all__) == CLASSES | FUNCTIONS


@pytest.mark.parametrize("before", ["", IMPORT_ALL], ids=["fresh process", "all submodules imported"])
def test_each_public_name_is_of_its_kind(before: str) -> None:
    names = sorted(CLASSES | FUNCTIONS)
    program = f"""{before}
from gpt2core import {", ".join(names)}
print(*(type(name).__name__ for name in [{", ".join(names)}]))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    kinds = dict(zip(names, result.stdout.split(), strict=True))
    assert kinds == dict.fromkeys(CLASSES, "type") | dict.fromkeys(FUNCTIONS, "function")


@pytest.mark.parametrize("package", [gpt2core.decoding, gpt2core.importing])
def test_a_package_exports_no_module(package: object) -> None:
    exported = {name: getattr(package, name) for name in package.__all__}  # type: ignore[attr-defined]
    assert [name for name, value in exported.items() if inspect.ismodule(value)] == []
