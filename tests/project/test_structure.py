"""What a reader can rely on: no import circle, folders, files and functions that fit a screen."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("gpt2core", "gpt2ops", "tasks", "flows")
MAX_ENTRIES = 16  # of a folder
MAX_FILE_LINES, MAX_STAGE_LINES, MAX_FUNCTION_LINES = 400, 120, 60
MAX_CLASS_LINES = 280


def files_of(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TREES = {module_name(file): ast.parse(file.read_bytes()) for package in PACKAGES for file in files_of(package)}


def imported_names(module: str) -> Iterator[str]:
    """Each name that the module imports anywhere in it: at its top, in a function, for type checkers only.

    A string that is a module's whole name counts too: commands and lazy names are imported by it.
    """
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield from {node.value} & TREES.keys()


def imported_modules(module: str) -> set[str]:
    """Those of this project: `package.module.name` means the module where there is no module of the whole name."""
    found = (name if name in TREES else name.rpartition(".")[0] for name in imported_names(module))
    return {name for name in found if name in TREES and name != module}


def import_circle() -> list[str]:
    """The modules of one circle of imports, empty where there is none."""
    try:
        TopologicalSorter({module: imported_modules(module) for module in TREES}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert import_circle() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_can_be_read_at_a_glance(package: str) -> None:
    crowded = {}
    for folder in {file.parent for file in files_of(package)}:
        entries = [entry for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()]
        entries = [entry for entry in entries if not entry.name.startswith("_")]
        if len(entries) > MAX_ENTRIES:
            crowded[folder.relative_to(ROOT).as_posix()] = len(entries)
    assert crowded == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_files_are_short(package: str) -> None:
    limit = MAX_STAGE_LINES if package == "tasks" else MAX_FILE_LINES
    lines = {module_name(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files_of(package)}
    assert {name: count for name, count in lines.items() if count > limit} == {}


@pytest.mark.parametrize(
    ("kinds", "limit"),
    [((ast.FunctionDef, ast.AsyncFunctionDef), MAX_FUNCTION_LINES), (ast.ClassDef, MAX_CLASS_LINES)],
    ids=["functions", "classes"],
)
def test_functions_and_classes_are_short(kinds: type[ast.stmt] | tuple[type[ast.stmt], ...], limit: int) -> None:
    lines = {
        f"{module}.{getattr(node, 'name', '')}": (node.end_lineno or 0) - node.lineno + 1
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    }
    assert {name: count for name, count in lines.items() if count > limit} == {}


def test_tasks_holds_the_stages_and_nothing_else() -> None:
    stages = ("download", "tokenize", "finetune", "evaluate", "sample", "plot", "register", "report")
    entries = {entry.name for entry in (ROOT / "tasks").iterdir() if entry.name != "__pycache__"}
    assert entries == {"__init__.py", *(f"{stage}.py" for stage in stages)}


def test_the_library_does_not_print_and_does_not_know_the_environment_or_the_working_directory() -> None:
    forbidden = {"print", "input", "os.environ", "os.getenv", "os.getcwd", "Path.cwd"}
    found = {
        f"{module}:{node.lineno}": ast.unparse(node)
        for module, tree in TREES.items()
        if module.partition(".")[0] == "gpt2core"
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in forbidden
    }
    assert found == {}
