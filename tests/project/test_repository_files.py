"""What GitHub, Docker and editors read of this repository: they cannot run here, so their linters look at it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "dependabot": ".github/dependabot.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "citation-file-format": "CITATION.cff",
}


def findings(tool: str, *arguments: str | Path) -> str:
    """What the tool says where it is not content, else nothing."""
    done = subprocess.run([BIN / tool, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return f"{tool} ended with {done.returncode}: {done.stdout}{done.stderr}" if done.returncode else ""


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_match_their_published_schema(schema: str) -> None:
    files = sorted(ROOT.glob(SCHEMAS[schema]))
    assert files
    assert findings("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *files) == ""


def test_workflows_are_safe() -> None:
    assert findings("zizmor", "--offline", "--no-config", ".github") == ""


def test_dockerfile_has_no_findings() -> None:
    assert findings("hadolint", "Dockerfile") == ""


def test_hooks_are_valid_and_use_tools_of_the_environment() -> None:
    assert findings("pre-commit", "validate-config", ".pre-commit-config.yaml") == ""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]:
        folder, _, tool = hook["entry"].split()[0].rpartition("/")
        assert folder == ".venv/bin", hook
        assert (BIN / tool).exists(), tool


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_workflows_and_the_dev_container_use_targets_that_exist() -> None:
    commands = [path.read_text() for path in sorted((ROOT / ".github/workflows").glob("*.yml"))]
    commands.append(json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())["postCreateCommand"])
    used = {target for text in commands for target in re.findall(r"\bmake ([a-z-]+)", text)}
    assert {"test-all", "lint", "docs", "setup"} <= used
    assert used <= make_targets()


def test_every_action_is_pinned_to_a_commit() -> None:
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        for action in re.findall(r"uses: (.*)", path.read_text()):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", action), f"{path.name}: {action}"
