"""Where an MLflow run came from: commit, pipeline state, data, flow run and user, as its tags."""

import getpass
import os
import subprocess
import sys
from pathlib import Path

from gpt2core.storage.files import read_json, sha256_file
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.code_version import code_commit, code_sha256, package_version
from gpt2ops.pipeline.paths import project_root
from gpt2ops.process.git import git

UNKNOWN = "unknown"
INITIAL_WEIGHTS_TAG = "initial_weights_sha256"  # of the weights that a training started at


def origin_tags() -> dict[str, str]:
    """Where a run came from: code, commit, pipeline state, data, folder, flow run, user."""
    tags = {**_git_tags(), "code_sha256": code_sha256(), "code_version": package_version()}
    if commit := code_commit():
        tags["code_commit"] = commit
    tags["project_folder"] = _project_folder()
    if paths.DVC_LOCK.exists():
        tags["dvc_lock_sha256"] = sha256_file(paths.DVC_LOCK)
    manifest = paths.TOKENS / "manifest.json"
    if manifest.exists():
        tags["data_sha256"] = str(read_json(manifest).get("sha256", UNKNOWN))
    if flow_run_id := os.environ.get("GPT2_FLOW_RUN_ID"):
        tags["prefect_flow_run_id"] = flow_run_id
    tags["mlflow.source.name"] = Path(sys.argv[0]).name or "python"
    tags["mlflow.source.type"] = "LOCAL"
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        tags["mlflow.user"] = UNKNOWN
    return tags


def _project_folder() -> str:
    """Where `gpt2 rerun` finds the text and DVC's cache; relative to the folder that holds `mlruns/` if inside it."""
    here, root = Path.cwd().resolve(), project_root()
    if os.environ.get("GPT2_FLOW_RUN_ID"):  # its own folder goes with the run
        return "."
    return here.relative_to(root).as_posix() if here.is_relative_to(root) else str(here)


def _git_tags() -> dict[str, str]:
    """Commit, and whether code or parameters differ from it. A download has none, even inside another repository."""
    if _git("ls-files", "--error-unmatch", paths.PARAMS.as_posix()) is None:
        return {"git_commit": UNKNOWN, "git_dirty": UNKNOWN}
    # The pipeline's own outputs change with every run; they do not make the code dirty.
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock", ":!reports")
    commit = _git("rev-parse", "HEAD") or UNKNOWN
    tags = {"git_commit": commit, "git_dirty": UNKNOWN if changes is None else str(bool(changes)).lower()}
    if commit != UNKNOWN:
        tags["mlflow.source.git.commit"] = commit
    return tags


def _git(*arguments: str) -> str | None:
    try:
        return os.fsdecode(git(Path.cwd(), *arguments, timeout=20, check=True).stdout).strip()
    except (OSError, subprocess.SubprocessError):
        return None
