"""A project in a folder of its own: params.yaml, dvc.yaml and the text, run by the code that is installed.

Its dvc.yaml is that of the repository with two changes. Stages are run as `gpt2ops.stages`, without the project's own
modules on the path: a `tasks.py` there is the user's. In place of the code among the dependencies, code.yaml holds a
digest of each stage's code, so that an update of the package runs again only the stages whose code it changed.
"""

import importlib.resources
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from gpt2core.errors import UserError
from gpt2core.storage.files import write_text
from gpt2ops.params.editing import with_values
from gpt2ops.params.schema import parse_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.code_version import CODE, PACKAGE, code_root, digest
from gpt2ops.process.git import git
from gpt2ops.store.address import uri_of

PIPELINE = Path("dvc.yaml")
CODE_FILE = Path("code.yaml")
_CODE_HEADER = """\
# A digest of each stage's code, as it is installed: `gpt2 init FOLDER --update` brings it up to date, and the next
# `dvc repro` then runs the stages whose code has changed.
"""
_GITIGNORE = ("/models/", "/logs/", "/mlruns/", "/dvc_plots/", "*.partial", "__pycache__/")


def published(name: Path) -> Traversable:
    """The file `name` of the repository: from the package's data, or from the checkout.

    Raises UserError where the installation lacks it.
    """
    for place in (importlib.resources.files("gpt2ops") / "published", code_root()):
        if (file := place / name.as_posix()).is_file():
            return file
    raise UserError(f"{name} of the package {PACKAGE} is missing: install the package again.")


def params_text(overrides: Mapping[str, Any], base: str | None = None, source: str = str(paths.PARAMS)) -> str:
    """params.yaml with its comments and with `overrides`. Raises UserError, naming `source`, for invalid values."""
    text = published(paths.PARAMS).read_text(encoding="utf-8") if base is None else base
    written = with_values(text, overrides)
    parse_params(yaml.safe_load(written), source=source)
    return written


def write_project(folder: Path, params: str, *, use_git: bool) -> None:
    """Write all files of the project except its text; files of an earlier version are overwritten."""
    write_text(folder / paths.PARAMS, params)
    write_pipeline(folder)
    (folder / paths.BUNDLED_CORPUS.parent).mkdir(parents=True, exist_ok=True)
    config = "[core]\n    analytics = false\n" + ("" if use_git else "    no_scm = true\n")
    write_text(folder / ".dvc/config", config)
    write_text(folder / ".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")


def write_pipeline(folder: Path) -> None:
    """Write dvc.yaml, code.yaml and .gitignore for the installed code."""
    pipeline, code, ignored = installed_pipeline()
    write_text(folder / PIPELINE, pipeline)
    write_text(folder / CODE_FILE, _CODE_HEADER + yaml.safe_dump(code, sort_keys=False))
    write_text(folder / ".gitignore", "\n".join(ignored) + "\n")


def installed_pipeline() -> tuple[str, dict[str, str], list[str]]:
    """A project's dvc.yaml, the digest of each stage's code, and the lines of .gitignore."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.width = 4096
    editor.indent(mapping=2, sequence=4, offset=2)
    pipeline = editor.load(published(PIPELINE).read_text(encoding="utf-8"))
    code: dict[str, str] = {}
    ignored = list(_GITIGNORE)
    for name, stage in pipeline["stages"].items():
        stage["cmd"] = stage["cmd"].replace("-m tasks.", "-P -m gpt2ops.stages.")
        own = [dependency for dependency in stage["deps"] if dependency.split("/")[0] in CODE]
        for dependency in own:
            stage["deps"].remove(dependency)
        code[name] = digest(own, code_root())[:16]
        stage.setdefault("params", []).append({CODE_FILE.as_posix(): [name]})
        ignored += [f"/{out}" for out in stage.get("outs", []) if not str(out).startswith("models/")]
    text = io.StringIO()
    editor.dump(pipeline, text)
    return text.getvalue(), code, ignored


def is_project(folder: Path) -> bool:
    return (folder / CODE_FILE).is_file() and (folder / paths.PARAMS).is_file()


def in_git(folder: Path) -> bool:
    """Whether `folder`, which need not exist yet, lies in a git repository that does not ignore it."""
    parent = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.is_dir())
    return _git(parent, "rev-parse", "--show-toplevel") and not _git(
        parent, "check-ignore", "-q", str(folder.resolve() / PIPELINE)
    )


def _git(folder: Path, *arguments: str) -> bool:
    try:
        return git(folder, *arguments, timeout=20).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def stage_environment(store: Path, **more: str) -> dict[str, str]:
    """The environment of a project's stages: this Python and this code, and the MLflow store of the folder `store`."""
    python_path = list(filter(None, [os.environ.get("PYTHONPATH")]))
    if (code_root() / "pyproject.toml").is_file():  # a checkout, which need not be installed
        python_path.insert(0, str(code_root()))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(python_path),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "true",
        "GPT2_COMMAND": "1",
        "GPT2_PROJECT_ROOT": str(store.resolve()),
        **more,
    }
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////") and os.name == "posix":
        # The stages run in another working directory.
        environment["MLFLOW_TRACKING_URI"] = uri_of(Path(unquote(uri.removeprefix("sqlite:///"))).resolve())
    return environment
