"""pyproject.toml's ranges, the pins of requirements.txt, and what the code imports agree with each other."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gpt2core
from gpt2ops.process.failures import EXTRAS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
OWN = {"gpt2core", "gpt2ops", "tasks", "flows"}
# A library that one of ours always brings along.
BROUGHT = {
    "pandas": "mlflow",
    "urllib3": "requests",
    "voluptuous": "dvc",
    "markupsafe": "jinja2",
    "pydantic-core": "pydantic",
    "triton": "torch",  # its CUDA build
}


def pins(file: str) -> dict[str, str]:
    """Version by name. Raises where a line is no exact pin."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    pairs = [line.split("==") for line in lines if line and not line.startswith("-r ")]
    return {canonicalize_name(name): version for name, version in pairs}


def ranges(*extras: str) -> list[Requirement]:
    """The core's requirements, and those that the extras themselves name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in OPTIONAL[extra])]
    return [each for each in map(Requirement, lines) if each.name != PROJECT["name"]]


@pytest.mark.parametrize("extra", OPTIONAL)
def test_the_pins_lie_in_the_ranges(extra: str) -> None:
    pinned = pins("requirements.txt") | pins("requirements-dev.txt")
    for requirement in ranges(extra):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_what_a_run_installs_is_all_of_the_extras_and_no_test_tool() -> None:
    named = {canonicalize_name(each.name) for each in ranges("pipeline", "app", "serve", "export")}
    assert pins("requirements.txt").keys() == named
    assert not pins("requirements.txt").keys() & pins("requirements-dev.txt").keys()


def test_all_has_every_extra_but_the_tools() -> None:
    (everything,) = map(Requirement, OPTIONAL["all"])
    assert everything.extras | {"pipeline", "all", "dev"} == OPTIONAL.keys()
    assert f"{PROJECT['name']}[pipeline]" in OPTIONAL["app"]


def libraries_of(package: str) -> set[str]:
    """What the modules of `package` import, anywhere in them, by its name in an import statement."""
    names = set[str]()
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - OWN - sys.stdlib_module_names


@pytest.mark.parametrize("package", sorted(OWN))
def test_every_library_that_is_imported_is_named_in_an_extra(package: str) -> None:
    named = {canonicalize_name(each.name) for each in ranges("pipeline", "app", "serve", "export")}
    homes = packages_distributions()
    for library in libraries_of(package):
        distributions = {BROUGHT.get(name, name) for name in map(canonicalize_name, homes.get(library, [library]))}
        assert distributions & named, library


def test_a_missing_library_is_looked_for_in_the_extra_that_has_it() -> None:
    for library, extra in EXTRAS.items():
        assert library in {each.name for each in map(Requirement, OPTIONAL[extra])}


def test_the_version_is_written_once() -> None:
    assert "version" in PROJECT["dynamic"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{gpt2core.__version__}]" in changelog
