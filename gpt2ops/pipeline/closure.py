"""Which files an import reaches, read from the source: nothing is imported or run.

The standard library's `modulefinder` does not fit: it counts what only type checkers import, and misses modules that
strings name.
"""

import ast
import re
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec, resolve_name
from pathlib import Path

_MODULE = re.compile(r"([a-z_]\w*(?:\.\w+)+)(?::\w+)?")  # "package.module" or "package.module:name", and no prose


@dataclass
class Closure:
    """`files` by module name; `libraries` are the other packages imported, without the standard library's."""

    files: dict[str, Path] = field(default_factory=dict)
    libraries: set[str] = field(default_factory=set)


def import_closure(modules: Iterable[str], packages: Collection[str], without: Collection[str] = ()) -> Closure:
    """What `modules` and all that they import have of `packages`, with each package's `__init__`.

    Deferred imports and modules named in a string count; imports for type checkers do not, except as a name that a
    package loads on first use. What matches a pattern of `without` (`package.module`, `package.*`) is not followed.
    """
    closure, seen, waiting = Closure(), set[str](), list(modules)
    while waiting:
        name = waiting.pop()
        if name in seen or any(fnmatchcase(name, pattern) for pattern in without):
            continue
        seen.add(name)
        package, _, last = name.rpartition(".")
        if name.partition(".")[0] not in packages:
            closure.libraries |= {name.partition(".")[0]} - sys.stdlib_module_names
            continue
        file = _file_of(name)
        if file is not None:
            closure.files[name] = file
            found = _Imports(name, file)
            waiting += [*found.names, *(text for text in found.texts if text.partition(".")[0] in packages)]
        elif (holder := _file_of(package)) is not None:  # not a module, but a name in one
            waiting += _Imports(package, holder).typing.get(last, [])
        if package:
            waiting.append(package)
    return closure


def _file_of(module: str) -> Path | None:
    top, *rest = module.split(".")
    spec = find_spec(top)
    for folder in (spec and spec.submodule_search_locations) or []:
        place = Path(folder, *rest)
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                return file
    return None


class _Imports(ast.NodeVisitor):
    """The `names` that a module imports, the `texts` that may name a module, and `typing`: what it imports to check."""

    def __init__(self, module: str, file: Path) -> None:
        self.names: list[str] = []
        self.texts: list[str] = []
        self.typing: dict[str, list[str]] = {}
        self._package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        self.visit(ast.parse(file.read_bytes()))

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).removeprefix("typing.") != "TYPE_CHECKING":
            self.generic_visit(node)
            return
        for statement in node.body:
            if isinstance(statement, ast.ImportFrom):
                for alias in statement.names:
                    self.typing[alias.asname or alias.name] = [f"{self._source(statement)}.{alias.name}"]
        for statement in node.orelse:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        self.names += [alias.name for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.names += [f"{self._source(node)}.{alias.name}" for alias in node.names]

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and (match := _MODULE.fullmatch(node.value)):
            self.texts.append(match[1])

    def _source(self, node: ast.ImportFrom) -> str:
        return resolve_name("." * node.level + (node.module or ""), self._package)
