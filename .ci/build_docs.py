"""`make docs`: the documentation site in site/, from docs/, the docstrings, params.yaml's schema and the commands.

Without the network. The pages that are written here are not kept in git.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import yaml
from cli.main import COMMANDS, build_parser
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbconvert.writers import FilesWriter
from tasks.params import Params

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
DOCS = ROOT / "docs"
QUIET = {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "COLUMNS": "86",  # width of argparse's help
}


def write_params_page() -> None:
    """Every key of params.yaml with its default, its meaning and what it may be, from the schema."""
    schema = Params.model_json_schema()
    lines = ["# params.yaml", "", "Every key, its default and what it may be. A key that is left out has its default."]
    lines += ["`by recipe`: [`train.recipe`](../own_text.md#recipes) decides where the key is `null` or left out.", ""]
    for section, reference in schema["properties"].items():
        lines += [f"## {section}", "", "| key | default | meaning |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows_of(schema, reference, "")] + [""]
    (DOCS / "reference/params.md").write_text("\n".join(lines), encoding="utf-8")


def rows_of(schema: dict[str, Any], reference: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of each field of a section; those of a section within it follow, as `split.train`."""
    definition = schema["$defs"][reference["$ref"].rpartition("/")[2]]
    for name, field in definition["properties"].items():
        if "$ref" in field:
            yield from rows_of(schema, field, f"{prefix}{name}.")
            continue
        meaning = " ".join(field.get("description", "").split()).replace("|", "\\|")
        yield f"`{prefix}{name}`", default_of(field), f"{meaning} *{allowed(field)}*".strip()


def default_of(field: dict[str, Any]) -> str:
    value = field.get("default", [])
    if isinstance(value, list):
        return "a list, in `params.yaml`"
    takes_null = any(kind.get("type") == "null" for kind in field.get("anyOf", []))
    if value is None and not takes_null:
        return "`by recipe`"
    return f"`{yaml.safe_dump(value).splitlines()[0]}`"


def allowed(field: dict[str, Any]) -> str:
    """Types, choices and bounds of a field, in words."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    parts = []
    for kind in field.get("anyOf", [field]):
        choices = kind.get("enum", [kind["const"]] if "const" in kind else [])
        bounds = " and ".join(f"{sign} {kind[key]:,}" for key, sign in signs.items() if key in kind)
        parts.append(", ".join(choices) if choices else f"{kind.get('type', 'list')} {bounds}".strip())
    return " or ".join(parts)


def write_commands_page() -> None:
    lines = ["# Commands", "", "What `gpt2 COMMAND --help` prints.", ""]
    for command in COMMANDS:
        parser = build_parser(command)
        own = next(action for action in parser._actions if action.dest == "command").choices[command]
        lines += [f"## gpt2 {command}", "", "```text", own.format_help().rstrip(), "```", ""]
    (DOCS / "reference/commands.md").write_text("\n".join(lines), encoding="utf-8")


def write_notebook_page(path: Path, *, execute: bool) -> None:
    """The notebook as a page, with its outputs if it is executed, which happens in a temporary folder."""
    notebook = nbformat.read(path, as_version=4)
    if execute:
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    resources = {"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
    exporter = MarkdownExporter(preprocessors=[CoalesceStreamsPreprocessor])
    body, resources = exporter.from_notebook_node(notebook, resources=resources)
    FilesWriter(build_directory=str(path.parent)).write(body, resources, notebook_name=path.stem)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-notebooks", action="store_true", help="show the notebooks without running them")
    execute = not parser.parse_args().no_notebooks
    os.environ |= QUIET
    write_params_page()
    write_commands_page()
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        print(f"notebook {path.stem} {'(running it)' if execute else ''}", flush=True)
        write_notebook_page(path, execute=execute)
    sys.exit(subprocess.run([BIN / "zensical", "build", "--clean", "--strict"], cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
