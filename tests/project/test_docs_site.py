"""The documentation site builds without warnings and without the network, and a reader finds every page."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("docs", "mkdocs.yml", ".ci", "gpt2core")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which the site has been built; the notebooks were not run for it (test_notebooks.py runs them)."""
    root = tmp_path_factory.mktemp("project")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*_files"))
        else:
            shutil.copy(ROOT / name, root / name)
    for page in (root / "docs").rglob("*.md"):
        if not (ROOT / page.relative_to(root)).exists() or is_generated(page.relative_to(root / "docs")):
            page.unlink()
    command = [sys.executable, root / ".ci/build_docs.py", "--no-notebooks"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return root


def is_generated(page: Path) -> bool:
    return page.parent == Path("notebooks") or page in (Path("reference/commands.md"), Path("reference/params.md"))


def pages_of(nav: list[Any]) -> list[str]:
    values = [value for entry in nav for value in entry.values()]
    return [page for value in values for page in (pages_of(value) if isinstance(value, list) else [value])]


def test_every_page_is_in_the_navigation_once(project: Path) -> None:
    pages = pages_of(yaml.safe_load((project / "mkdocs.yml").read_text())["nav"])
    assert sorted(pages) == sorted(
        path.relative_to(project / "docs").as_posix() for path in (project / "docs").rglob("*.md")
    )
    for page in pages:
        assert (project / "site" / page).with_suffix(".html").exists(), page


def test_no_page_loads_anything_from_another_host(project: Path) -> None:
    for page in (project / "site").rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(https?:)?//[^>]*>", page.read_text())
        assert loaded == [], page.name


def test_the_library_page_documents_the_public_names(project: Path) -> None:
    page = (project / "site/reference/api.html").read_text()
    for name in ("GPT", "GPTConfig", "Tokenizer", "generate", "evaluate", "perplexity", "Trainer"):
        assert re.search(rf"<h2[^>]*>.*?\b{name}\b.*?</h2>", page, flags=re.DOTALL), name


def test_the_params_page_has_every_key_and_its_bounds(project: Path) -> None:
    page = (project / "docs/reference/params.md").read_text(encoding="utf-8")
    for section, keys in yaml.safe_load((ROOT / "params.yaml").read_text()).items():
        part = page.split(f"## {section}\n")[1].split("\n## ")[0]
        for key, value in keys.items():
            names = [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]
            assert all(f"| `{name}` |" in part for name in names), f"{section}.{key}"
    assert "| `drop_rate` | `null` | *number ≥ 0 and < 1 or null* |" in page
    assert "| `learning_rate` | `by recipe` | Peak of the schedule. *number > 0 and ≤ 10* |" in page
