"""`gpt2 rerun`: repeats a run from its record in the store: params.yaml, text by hash, code by digest."""

import io
import math
import os
import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from gpt2core.errors import UserError
from gpt2core.storage.files import read_json, sha256_file, write_json, write_text
from gpt2ops.params.editing import with_values
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.cache import cache_directory, restore
from gpt2ops.pipeline.code_version import CODE, code_root, code_sha256, digest
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.process.git import git
from gpt2ops.process.redact import secrets_named
from gpt2ops.registry.models import registered_versions
from gpt2ops.registry.runs import Run
from gpt2ops.store.client import connect

MARKER = Path("rerun.json")
# Stages that train and measure a model; a second version of the same model would only confuse the registry.
STAGES = ("tokenize", "finetune", "evaluate")
_COMMIT = re.compile("[0-9a-f]{7,64}")  # so that no value in the store is an option for git
# Metrics that depend on time, not on the training.
_NOT_COMPARED = ("wall_seconds", "tokens_per_second", "epoch")


@dataclass(frozen=True)
class RerunResult:
    """A rerun compared with the first run."""

    run_id: str
    same_weights: bool | None  # None: the hash of the first run's weights is unknown
    differences: dict[str, tuple[float, float | None]]  # metrics, (first, again)

    @property
    def identical(self) -> bool:
        return self.same_weights is not False and not self.differences


def prepare(run: Run, folder: Path, *, any_code: bool, send_secrets: bool = False) -> list[str]:
    """Write the settings, code and text of `run` into `folder`; returns the stages to run there.

    Raises UserError where the folder has other contents, the settings, the code or the text are not available, or the
    text's address asks for secrets of this environment and `send_secrets` is not set: a shared store may name any.
    """
    if (folder / MARKER).is_file() and read_json(folder / MARKER).get("run_id") == run.run_id:
        return list(STAGES)  # an interrupted rerun, whose checkpoints are there
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"--dir: {folder} is not empty; name a new folder.")
    params = _artifact(run, paths.PARAMS.name)
    if params is None:
        raise UserError(
            f"run {run.run_id} has no params.yaml: it is older than that record, or the store lost the file."
        )
    code = None if any_code else _other_code(run)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / paths.PARAMS, params)
    if code is not None:
        _unpack(code, folder)
    stages = list(STAGES)
    restored = _restore_text(run, folder)
    if not restored:
        stages.insert(0, "download")
        if not send_secrets:
            _refuse_secrets(folder)
    _use_absolute_names(run, folder, text=not restored)
    write_json(folder / MARKER, {"run_id": run.run_id})
    return stages


def check_data(run: Run, folder: Path) -> None:
    """Raises UserError where the tokenized text is not the one that `run` was trained on. Call it after `tokenize`."""
    wanted = run.tags.get("data_sha256")
    found = str(read_json(folder / paths.TOKENS / "manifest.json")["sha256"])
    if wanted not in (None, found):
        raise UserError(
            f"the text of run {run.run_id} is not available: {run.params.get('data.source')} has changed since "
            f"(sha256 {found[:12]}, the run's was {wanted[:12]}), and DVC's cache has no copy of it."
        )


def compare(run: Run, again: Run, folder: Path) -> RerunResult:
    """Compare `run` with its rerun `again` in `folder`, and tag the rerun `rerun_of` in the store."""
    connect().set_tag(again.run_id, "rerun_of", run.run_id)
    wanted = weights_of(run)
    found = sha256_file(folder / paths.BEST_MODEL / "model.safetensors")
    keys = [key for key in run.metrics if key in again.metrics or key.startswith("evaluate/")]
    differences = {
        key: (run.metrics[key], again.metrics.get(key))
        for key in keys
        if key not in _NOT_COMPARED and not _equal(run.metrics[key], again.metrics.get(key))
    }
    return RerunResult(again.run_id, None if wanted is None else wanted == found, differences)


def weights_of(run: Run) -> str | None:
    """SHA-256 of a run's best weights, from its tags or its registered version; None where neither has it."""
    if "weights_sha256" in run.tags:
        return run.tags["weights_sha256"]
    return next((version.weights_sha256 for version in registered_versions() if version.run_id == run.run_id), None)


def _equal(first: float, second: float | None) -> bool:
    return second is not None and (first == second or (math.isnan(first) and math.isnan(second)))


# Code


def _other_code(run: Run) -> bytes | None:
    """A tar archive of the run's code; None where this code is the same. Raises UserError where it is not found."""
    wanted = run.tags.get("code_sha256")
    if wanted == code_sha256():
        return None
    commit = run.tags.get("code_commit") or run.tags.get("git_commit") or "unknown"
    name = f"run {run.run_id} was made by different code (version {run.tags.get('code_version', 'unknown')}"
    remedy = "install that version, or use the present code with --any-code."
    archive = _archive(commit) if _COMMIT.fullmatch(commit) else None
    if archive is None:
        where = f", commit {commit[:12]}, which is in no repository here" if commit != "unknown" else ", commit unknown"
        raise UserError(f"{name}{where}); {remedy}")
    dirty = run.tags.get("git_dirty") == "true"
    with tempfile.TemporaryDirectory() as folder:
        _unpack(archive, Path(folder))
        if (wanted and digest(CODE, Path(folder)) != wanted) or (not wanted and dirty):
            raise UserError(f"{name}, commit {commit[:12]} with uncommitted changes); {remedy}")
    return archive


def _archive(commit: str) -> bytes | None:
    for repository in (code_root(), mlruns().parent):
        try:
            return git(repository, "archive", commit, *CODE, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _unpack(archive: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


# Text


def _refuse_secrets(folder: Path) -> None:
    source = load_params(folder / paths.PARAMS).data.source
    if names := secrets_named(source):
        raise UserError(
            f"the run's text comes from {urlsplit(source).hostname}, with the value of {', '.join(names)} in the "
            "address; if it may be sent there, run again with --send-secrets."
        )


def _restore_text(run: Run, folder: Path) -> bool:
    """Restore data/raw by the run's dvc.lock from its project's DVC cache; False where the cache does not have it."""
    lock = _artifact(run, paths.DVC_LOCK.name)
    if lock is None:
        return False
    try:
        cache = cache_directory(_project(run))
        output = next(out for out in yaml.safe_load(lock)["stages"]["download"]["outs"])
        return restore({"path": str(folder / paths.RAW), "md5": output["md5"]}, cache)
    except (UserError, KeyError, TypeError, StopIteration, yaml.YAMLError):
        return False


def _use_absolute_names(run: Run, folder: Path, *, text: bool) -> None:
    """Make file names in params.yaml that were relative to the run's project absolute."""
    names = {"model": "init", **({"data": "source"} if text else {})}
    changes = {}
    for section, key in names.items():
        name = run.params.get(f"{section}.{key}", "")
        there = _project(run) / (paths.BUNDLED_CORPUS if name == "bundled" else name)
        if name and there.exists():
            changes[section] = {key: str(there.resolve())}
    if changes:
        file = folder / paths.PARAMS
        write_text(file, with_values(file.read_text(encoding="utf-8"), changes))


def _project(run: Run) -> Path:
    return mlruns().parent / run.tags.get("project_folder", ".")


def _artifact(run: Run, name: str) -> str | None:
    """The text of the run's artifact `name`; None where it has none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = connect().download_artifacts(run.run_id, name, folder)
        except Exception:  # each artifact store raises its own
            return None
        return Path(file).read_text(encoding="utf-8")


def as_dict(result: RerunResult, folder: Path) -> dict[str, Any]:
    return {
        "run_id": result.run_id,
        "identical": result.identical,
        "same_weights": result.same_weights,
        "differences": result.differences,
        "directory": os.fspath(folder.resolve()),
    }
