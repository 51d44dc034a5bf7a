"""Files and folders that nothing refers to: of interrupted writes, of other runs' checkpoints, of flow runs."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2core.storage.files import read_json
from gpt2core.training.checkpoint import STATE, step_directories
from gpt2ops.maintenance import presence
from gpt2ops.pipeline import paths
from gpt2ops.process.signals import is_alive

_PARTIAL = re.compile(r"\.(?:.+\.)?(\d+)\.partial")  # written by `atomic_path`, with its process id
_RUN_FOLDER = re.compile("[0-9a-f]{12}")  # named by `checkpoints_of`; other names are a user's own copies
_FLOW_RUN = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Garbage:
    """A file or folder that may be removed: its kind, as a key of the JSON output, and why nothing needs it."""

    path: Path
    kind: str
    why: str

    @property
    def size_bytes(self) -> int:
        return size_of(self.path)


def size_of(path: Path) -> int:
    if path.is_file() or path.is_symlink():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file() or file.is_symlink())


@dataclass(frozen=True)
class Leftover:
    path: Path
    holds_the_original: bool = False  # `.NAME.old` where there is no NAME


def half_written_paths(root: Path) -> list[Leftover]:
    """What interrupted writes left where this project writes, without files that a live process is writing.

    An interrupted download is not among them: it is resumed.
    """
    found = []
    for path in _candidates(root):
        name = path.name
        if name.startswith(".") and name.endswith(".partial"):
            match = _PARTIAL.fullmatch(name)
            writer_lives = is_alive(int(match[1])) if match else _is_recent(path)
            if not writer_lives:
                found.append(Leftover(path))
        elif name.startswith(".") and name.endswith(".old") and path.is_dir():  # a file of this name is a user's own
            original = path.with_name(name.removeprefix(".").removesuffix(".old"))
            found.append(Leftover(path, holds_the_original=not original.exists()))
        elif name.startswith("damaged-step-"):
            found.append(Leftover(path))
    return found


def _candidates(root: Path) -> Iterator[Path]:
    for folder in (root, root / "data", root / "mlruns"):
        if folder.is_dir():
            yield from sorted(folder.iterdir())
    for folder in (root / paths.RAW, root / paths.CHECKPOINTS.parent, root / "reports", root / paths.LOGS):
        yield from _below(folder)


def _below(folder: Path) -> Iterator[Path]:
    """Everything below `folder`, without the contents of half-written folders; links are not followed."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        yield path
        half = path.name.endswith((".partial", ".old")) or path.name.startswith("damaged-")
        if path.is_dir() and not path.is_symlink() and not half:
            yield from _below(path)


def _is_recent(path: Path) -> bool:
    newest = max((file.lstat().st_mtime for file in (path, *path.rglob("*"))), default=0.0)
    return time.time() - newest < presence.RECENT_SECONDS


def half_written(root: Path) -> list[Garbage]:
    return [
        Garbage(
            leftover.path,
            "leftovers",
            "a damaged checkpoint" if leftover.path.name.startswith("damaged-") else "of an interrupted write",
        )
        for leftover in half_written_paths(root)
        if not leftover.holds_the_original
    ]


def downloads(root: Path) -> list[Garbage]:
    """Parts of downloads other than that of data.source, which the next run resumes.

    Raises UserError where params.yaml cannot be read.
    """
    from gpt2ops.corpora.http import DOWNLOADS, partial_name
    from gpt2ops.corpora.sources import urls_of
    from gpt2ops.params.schema import load_params

    left = [path for path in (root / DOWNLOADS).glob("*.partial") if path.is_file() and not _is_recent(path)]
    kept = {partial_name(url) for url in urls_of(load_params(root / paths.PARAMS).data.source)} if left else set()
    return [Garbage(path, "leftovers", "a part of a download") for path in sorted(left) if path.name not in kept]


def checkpoints(root: Path, *, unfinished_too: bool) -> list[Garbage]:
    """Checkpoints of runs other than those of params.yaml and models/run.json.

    Runs that could be resumed are included only with `unfinished_too`.
    Raises UserError where params.yaml or the tokens cannot be read, so that the current run is unknown.
    """
    top = root / paths.CHECKPOINTS
    folders = sorted(folder for folder in top.iterdir() if folder.is_dir()) if top.is_dir() else []
    folders = [folder for folder in folders if _RUN_FOLDER.fullmatch(folder.name)]
    if not folders:
        return []
    described, run_id = fingerprint_now(root), run_of_best(root)
    found = []
    for folder in folders:
        state = newest_state(folder)
        if _is_current(state, described, run_id):
            continue
        if state is not None and state.get("finished") is not None:
            found.append(Garbage(folder, "checkpoints", f"another run, ended at step {state.get('step')}"))
        elif unfinished_too:
            step = "without a checkpoint" if state is None else f"at step {state.get('step')}"
            found.append(Garbage(folder, "checkpoints", f"another run, unfinished, {step}"))
    return found


def _is_current(state: dict[str, Any] | None, described: dict[str, Any], run_id: str | None) -> bool:
    if state is None:
        return False
    if run_id is not None and state.get("extra", {}).get("run_id") == run_id:
        return True
    fingerprint = state.get("fingerprint", {})
    return all(fingerprint.get(key) == value for key, value in described.items())


def fingerprint_now(root: Path) -> dict[str, Any]:
    """The fingerprint of a training started here now, without the keys that params.yaml and the tokens leave open."""
    from gpt2core.config import GPTConfig
    from gpt2core.data.tokens import open_tokens
    from gpt2ops.params.schema import load_params
    from gpt2ops.training.fingerprint import fingerprint_of

    params = load_params(root / paths.PARAMS)
    tokens = open_tokens(root / paths.TOKENS).manifest["sha256"] if (root / paths.TOKENS).is_dir() else None
    new = params.model.init == "scratch"  # otherwise the architecture is that of the initial weights
    config = GPTConfig.from_preset(params.model.preset, **params.model.overrides).as_dict() if new else {}
    fingerprint = fingerprint_of(params, config, tokens or "", "")
    open_keys = {"precision"} | (set() if tokens else {"data_sha256"}) | ({"seed"} if params.run.seeds > 1 else set())
    # As read from a checkpoint's JSON: lists for tuples.
    return json.loads(json.dumps({key: value for key, value in fingerprint.items() if key not in open_keys}))


def newest_state(folder: Path) -> dict[str, Any] | None:
    """The trainer's state in the newest readable checkpoint of `folder`; None where there is none."""
    for directory in reversed(step_directories(folder)):
        try:
            state = read_json(directory / STATE)
        except (OSError, ValueError):
            continue
        if isinstance(state, dict):
            return state
    return None


def run_of_best(root: Path) -> str | None:
    try:
        return str(read_json(root / paths.RUN)["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def flow_runs(root: Path, *, unfinished_too: bool) -> list[Garbage]:
    """Workspaces of ended flow runs; those that a retry would resume in only with `unfinished_too`."""
    states = {"finished", "incomplete"} | ({"unfinished"} if unfinished_too else set())
    return [
        Garbage(workspace.folder, "workspaces", f"a flow run's folder, {workspace.state}")
        for workspace in presence.workspaces(root)
        if workspace.state in states and _FLOW_RUN.fullmatch(workspace.flow_run_id)
    ]
