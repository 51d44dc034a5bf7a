"""The tests mirror the packages, and none of them imports another."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
MAX_ENTRIES = 16  # of a folder


def imported_modules(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_no_test_imports_a_test() -> None:
    """What two of them need is in tests/support."""
    tests = {".".join(file.relative_to(TESTS.parent).with_suffix("").parts) for file in TESTS.rglob("test_*.py")}
    assert len(tests) > 50
    found = {str(file): imported_modules(file) & tests for file in TESTS.rglob("*.py")}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("package", ["gpt2core", "gpt2ops", "tasks", "flows"])
def test_folders_of_tests_mirror_those_of_the_package(package: str) -> None:
    folders = {file.parent.relative_to(TESTS) for file in (TESTS / package).rglob("test_*.py")}
    assert folders
    assert [str(folder) for folder in folders if not (TESTS.parent / folder / "__init__.py").exists()] == []


def test_a_folder_of_tests_can_be_read_at_a_glance() -> None:
    folders = [path for path in TESTS.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    entries = {str(folder): [path for path in folder.iterdir() if path.name != "__pycache__"] for folder in folders}
    assert {folder: len(inside) for folder, inside in entries.items() if len(inside) > MAX_ENTRIES} == {}
