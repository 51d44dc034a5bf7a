"""Checks of the project's files, params.yaml, DVC and Prefect."""

import os
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2core.errors import UserError
from gpt2ops.maintenance.doctor.finding import LOOK, OK, WRONG, Finding
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.cache import dvc_settings
from gpt2ops.pipeline.lockfile import read_stages
from gpt2ops.process.redact import redact
from gpt2ops.projects.project import PIPELINE
from gpt2ops.store.errors import one_line

PREFECT_SECONDS = 1.5


def has_project(root: Path) -> bool:
    return any((root / name).exists() for name in (paths.PARAMS, PIPELINE, paths.DVC_LOCK, Path(".dvc")))


def project(root: Path) -> Iterator[Finding]:
    if not has_project(root):
        yield Finding(
            LOOK, "project", f"none in {root}", "`gpt2 init FOLDER --text FILE` starts one, or go to its folder"
        )
        return
    if not os.access(root, os.W_OK | os.X_OK):
        yield Finding(WRONG, "project", f"{root} is read-only", "make it writable, or copy it elsewhere")
        return
    unwritable = [
        name
        for path in (paths.RAW, paths.TOKENS, paths.CHECKPOINTS, paths.LOGS, paths.PLOTS, paths.MLRUNS)
        if (name := str(path)) and (root / path).exists() and not os.access(root / path, os.W_OK)
    ]
    if unwritable:
        yield Finding(WRONG, "project", f"not writable: {', '.join(unwritable)}", "change their owner or permissions")
    else:
        yield Finding(OK, "project", str(root))


def params(root: Path) -> Iterator[Finding]:
    from gpt2ops.params.schema import load_params

    file = root / paths.PARAMS
    if not file.exists():
        yield Finding(WRONG, "params.yaml", "it is missing", "take it from git, or `gpt2 init FOLDER --update`")
        return
    try:
        load_params(file)
    except UserError as error:
        for line in str(error).splitlines():
            text = line.removeprefix(f"{file}: ").removeprefix(str(root) + os.sep)
            yield Finding(WRONG, "params.yaml", text, "correct that line; gpt2ops/params/sections.py has every key")
        return
    yield Finding(OK, "params.yaml", "valid")


def dvc(root: Path) -> Iterator[Finding]:
    """DVC's files, and whether its cache is writable."""
    yield from _pipeline(root)
    if not (root / ".dvc").is_dir():
        yield Finding(WRONG, "dvc", ".dvc is missing", "`dvc init` (outside git `dvc init --no-scm`)")
        return
    settings = dvc_settings(root)
    place = Path(settings["cache"]["dir"])
    there = next(parent for parent in (place, *place.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        remedy = "make it writable, or `dvc cache dir --local FOLDER`"
        yield Finding(WRONG, "dvc", f"its cache {place} is not writable", remedy)
    elif place != root.resolve() / ".dvc" / "cache" and not place.exists():
        text = f"its cache {place} does not exist (a moved folder, or a disk that is not mounted?)"
        yield Finding(LOOK, "dvc", text, "mount it, or `dvc cache dir --local FOLDER`")
    else:
        yield Finding(OK, "dvc", f"cache {place}")
    if not (root / ".git").exists() and not _in_git(root) and not settings["core"]["no_scm"]:
        yield Finding(
            WRONG, "dvc", "this is no git repository, and DVC expects one", "`dvc config --local core.no_scm true`"
        )


def _pipeline(root: Path) -> Iterator[Finding]:
    file = root / PIPELINE
    if not file.exists():
        yield Finding(WRONG, "dvc.yaml", "it is missing", "take it from git, or `gpt2 init FOLDER --update`")
    for name in (PIPELINE, paths.DVC_LOCK):
        if not (root / name).exists():
            continue
        try:
            stages = read_stages(root / name)
            if name == PIPELINE and _is_older(root, stages):
                text = "its stages are those of version 0.1 (`python -m tasks.STAGE`)"
                yield Finding(WRONG, str(name), text, "`gpt2 init . --update`")
        except ValueError as error:
            remedy = (
                "take it from git" if name == PIPELINE else "`gpt2 doctor --mend`; `dvc repro` then writes a new one"
            )
            yield Finding(WRONG, str(name), f"cannot be read ({' '.join(str(error).split())[:120]})", remedy)


def _is_older(root: Path, stages: Mapping[str, Any]) -> bool:
    """Whether the stages are modules `tasks.NAME`, which only a checkout has."""
    commands = [str(stage.get("cmd")) for stage in stages.values() if isinstance(stage, dict)]
    return any(" -m tasks." in command for command in commands) and not (root / "tasks").is_dir()


def outputs(root: Path) -> Iterator[Finding]:
    """Whether every output in dvc.lock exists."""
    file = root / paths.DVC_LOCK
    if not file.exists():
        yield Finding(LOOK, "outputs", "the pipeline has not run here yet", "`dvc repro`")
        return
    try:
        listed = [out["path"] for stage in read_stages(file).values() for out in stage.get("outs", [])]
    except (ValueError, TypeError, KeyError):
        return  # the check of dvc.lock reports it
    missing = [path for path in listed if not (root / path).exists()]
    if missing:
        names = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        yield Finding(LOOK, "outputs", f"missing: {names}", "`dvc checkout`, `dvc pull` or `dvc repro`")
    else:
        yield Finding(OK, "outputs", f"all {len(listed)} of dvc.lock exist; `gpt2 verify` checks their hashes")


def _in_git(root: Path) -> bool:
    return any((parent / ".git").exists() for parent in root.parents)


def prefect(root: Path) -> Iterator[Finding]:
    """Whether the configured server answers; `dvc repro` needs none."""
    url, origin = prefect_url(root)
    if url is None:
        yield Finding(OK, "prefect", "no server is configured: a flow starts its own")
        return
    shown = f"{redact(url)} ({origin})"
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=PREFECT_SECONDS).close()
    except (OSError, ValueError) as error:
        if origin == "prefect.toml":  # the address of `make serve`; a flow runs without it
            yield Finding(OK, "prefect", f"no server at {shown}: a flow starts its own; `make serve` starts one")
        else:
            remedy = "start it (`make serve`), or unset PREFECT_API_URL / `prefect config unset PREFECT_API_URL`"
            yield Finding(WRONG, "prefect", f"no answer from {shown} ({one_line(error)})", remedy)
    else:
        yield Finding(OK, "prefect", f"answers at {shown}")


def prefect_url(root: Path) -> tuple[str | None, str]:
    """The configured API and its origin: the environment, else this folder's prefect.toml, else the profile."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url, "PREFECT_API_URL"
    if url := (_toml(root / "prefect.toml").get("api") or {}).get("url"):
        return str(url), "prefect.toml"
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    profiles = _toml(home / "profiles.toml")
    name = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    url = (profiles.get("profiles") or {}).get(name, {}).get("PREFECT_API_URL")
    return (str(url), f"profile {name}") if url else (None, "")


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}
