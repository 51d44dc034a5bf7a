"""Virtual environments that see some of the libraries installed here, but not this project."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import gradio
import torch
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "mlruns", "models", "workspaces", "raw", "tokens", "logs"
)


def new_environment(folder: Path, libraries: Iterable[Path], *lines: str) -> Path:
    """The Python of a new virtual environment in `folder` that sees `libraries`; `lines` run when it starts."""
    venv.create(folder, with_pip=False)
    (site_packages(folder) / "libraries.pth").write_text("\n".join([*map(str, libraries), *lines, ""]))
    return Path(sysconfig.get_path("scripts", "venv", vars=_base(folder))) / "python"


def site_packages(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", vars=_base(folder)))


def _base(folder: Path) -> dict[str, str]:
    return {"base": str(folder), "platbase": str(folder)}


def all_libraries() -> set[Path]:
    """The folders of what is installed here; a `.pth` in them, as of an editable install, has no effect elsewhere."""
    return {Path(module.__file__).parents[1] for module in (torch, gradio)}


def link_libraries(names: Iterable[str], folder: Path) -> None:
    """Links in `folder` to the installed distributions `names` and to all that they require."""
    folder.mkdir()
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # of another platform
        for top in _top_level(found):
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))
        requirements = map(Requirement, found.requires or [])
        waiting += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]


def _top_level(found: Distribution) -> set[str]:
    return {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}


def clean_environment() -> dict[str, str]:
    """Ours, without what would show this project or its tracking store."""
    hidden = ("MLFLOW_", "GPT2_", "DVC_", "PREFECT_", "PYTHON")
    return {key: value for key, value in os.environ.items() if not key.startswith(hidden)} | {"HF_HUB_OFFLINE": "1"}


def build_wheel(folder: Path) -> Path:
    """The wheel of a copy of the sources: a build leaves files beside them."""
    shutil.copytree(ROOT, folder / "sources", ignore=NOT_SOURCES)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    subprocess.run(command, cwd=folder / "sources", check=True, env=clean_environment())
    return next(folder.glob("*.whl"))


def install(wheel: Path, python: Path) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, env=clean_environment())
