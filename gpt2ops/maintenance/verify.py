"""`gpt2 verify`: compares token sets, checkpoints, the last run's model and DVC's outputs with their hashes."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2core.data import tokens
from gpt2core.errors import UserError
from gpt2core.storage.files import read_json, sha256_file
from gpt2core.training import checkpoint
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.cache import cache_directory, cached_files, cached_object
from gpt2ops.pipeline.lockfile import read_stages
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.store.address import is_local
from gpt2ops.store.errors import one_line
from gpt2ops.tracking.restored_runs import stored_run_id

STEP_FORM = "step-*"


@dataclass(frozen=True)
class Verification:
    """`damage` has a line for each file that differs from its hash; `absent`: a tracked output that does not exist."""

    what: str
    kind: str
    damage: tuple[str, ...] = ()
    absent: bool = False

    @property
    def state(self) -> str:
        return "damaged" if self.damage else "absent" if self.absent else "whole"


def verify_project(root: Path) -> Iterator[Verification]:
    """Verify everything in the project that has a hash. A token set is compared with its manifest and with dvc.lock."""
    if (root / paths.TOKENS).is_dir():
        yield verify_tokens(root / paths.TOKENS)
    for directory in sorted((root / paths.CHECKPOINTS).glob(f"*/{STEP_FORM}")):
        if directory.is_dir() and not directory.name.startswith("."):
            yield verify_checkpoint(directory)
    if (root / paths.BEST_MODEL).is_dir():
        yield verify_best(root)
    for output in tracked_outputs(root):
        yield verify_output(root, output)
        if (cached := verify_cached(root, output)) is not None:
            yield cached
    if is_local() and (mlruns() / "mlflow.db").is_file():
        yield verify_store()


def verify_path(path: Path, root: Path) -> list[Verification]:
    """Verify `path`: a token set, a checkpoint, a folder of checkpoints, models/best, or an output that DVC tracks.

    Raises UserError where it does not exist, or has no recorded hashes.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    kind = _kind(path)
    if kind == "tokens":
        return [verify_tokens(path)]
    if kind == "checkpoint":
        return [verify_checkpoint(path)]
    found = [verify_checkpoint(folder) for folder in sorted(path.rglob(STEP_FORM)) if folder.is_dir()]
    if path.resolve() == (root / paths.BEST_MODEL).resolve():
        found.append(verify_best(root))
    full = path.resolve()
    for output in tracked_outputs(root):
        there = (root / output["path"]).resolve()
        if full in (there, *there.parents) or there in full.parents:
            found.append(verify_output(root, output))
            found += [cached for cached in [verify_cached(root, output)] if cached is not None]
    if not found:
        raise UserError(f"{path} is no token set, checkpoint or output of the pipeline: it has no recorded hashes.")
    return found


def _kind(path: Path) -> str | None:
    if path.is_dir() and (path.name.startswith("step-") or (path / checkpoint.STATE).exists()):
        return "checkpoint"
    try:
        manifest = read_json(path / tokens.MANIFEST)
    except (OSError, ValueError):
        return None
    return "tokens" if isinstance(manifest, dict) and "splits" in manifest else None


def verify_tokens(directory: Path) -> Verification:
    damage = []
    try:
        opened = tokens.open_tokens(directory)
        for name in opened.manifest["splits"]:
            damage += _split_damage(opened, name)
        if not damage:
            opened.check_digests()
    except UserError as error:
        damage.append(_reason(error))
    except (AttributeError, TypeError, KeyError, ValueError):
        damage.append(f"{directory / tokens.MANIFEST} is damaged")
    return Verification(str(directory), "tokens", tuple(damage))


def _split_damage(opened: tokens.TokenSet, name: str) -> list[str]:
    """A line for each damaged file of the split."""
    entry = opened.manifest["splits"][name]
    index = {**entry["document_index"], "size": entry["documents"] * tokens.START_DTYPE.itemsize}
    shards = [{**shard, "size": shard["tokens"] * tokens.TOKEN_DTYPE.itemsize} for shard in entry["shards"]]
    owners = {
        part["sha256"]: part["file"]
        for split in opened.manifest["splits"].values()
        for part in (*split["shards"], split["document_index"])
    }
    damage = []
    for part in (*shards, index):
        # Only the name: a manifest must not lead out of its directory.
        path = opened.directory / Path(part["file"]).name
        if not path.is_file():
            damage.append(f"{path} is missing")
        elif path.stat().st_size != part["size"]:
            damage.append(f"{path} has {path.stat().st_size:,} bytes, expected {part['size']:,}")
        elif (found := sha256_file(path)) != part["sha256"]:
            other = owners.get(found)
            damage.append(f"{path} has the contents of {other}" if other else f"{path} was changed (sha256)")
    return damage


def verify_checkpoint(directory: Path) -> Verification:
    try:
        checkpoint.verify_checkpoint(directory)
    except UserError as error:
        return Verification(str(directory), "checkpoint", (_reason(error),))
    return Verification(str(directory), "checkpoint")


def verify_best(root: Path) -> Verification:
    """Compare models/best with the hash in models/run.json."""
    weights = root / paths.BEST_MODEL / "model.safetensors"
    damage = []
    try:
        record = read_json(root / paths.RUN)
        expected = record.get("weights_sha256") or _registered_hash(root, record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        expected = None  # only dvc.lock has its hash
    if not weights.is_file():
        damage.append(f"{weights} is missing")
    elif expected is not None and sha256_file(weights) != expected:
        damage.append(f"{weights} is not what its run wrote (sha256)")
    damage += [] if damage else _layout_damage(weights)
    return Verification(str(root / paths.BEST_MODEL), "model", tuple(damage))


def _registered_hash(root: Path, record: dict[str, Any]) -> str | None:
    """Of a run of an earlier version, whose record has none; None where another run was registered."""
    registered = read_json(root / paths.REGISTERED)
    return str(registered["weights_sha256"]) if registered["run_id"] == stored_run_id(record["run_id"]) else None


def _layout_damage(weights: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    from gpt2core.storage.hf import read_config

    try:
        read_config(weights.parent)
        with safe_open(weights, framework="pt"):
            return []
    except UserError as error:
        return [_reason(error)]
    except (SafetensorError, OSError) as error:
        return [f"{weights} cannot be read ({one_line(error)})"]


def tracked_outputs(root: Path) -> list[dict[str, Any]]:
    """The outputs with hashes in dvc.lock. Raises UserError where it cannot be read."""
    file = root / paths.DVC_LOCK
    if not file.is_file():
        return []
    try:
        stages = read_stages(file)
        outputs = [output for stage in stages.values() for output in stage.get("outs", []) if "md5" in output]
        if not all(isinstance(output["path"], str) for output in outputs):
            raise ValueError
        return outputs
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{file} is damaged; run `gpt2 doctor --mend` and then `dvc repro`, or take it from git."
        ) from None


def verify_output(root: Path, output: dict[str, Any]) -> Verification:
    """Compare an output with its MD5 in dvc.lock, file by file where DVC's cache has the folder's list."""
    path, md5 = root / output["path"], str(output["md5"])
    if not path.exists():
        return Verification(output["path"], "output", absent=True)
    if not (path.is_file() or path.is_dir()):
        return Verification(output["path"], "output", (f"{path} is a pipe or a device, not a file",))
    if not md5.endswith(".dir"):
        damage = [] if md5_file(path) == md5 else [f"{path} is not what dvc.lock has (md5)"]
        return Verification(output["path"], "output", tuple(damage))
    found = {file.relative_to(path).as_posix(): md5_file(file) for file in sorted(path.rglob("*")) if file.is_file()}
    if listing_md5(found) == md5:
        return Verification(output["path"], "output")
    expected = listed_files(root, md5)
    if expected is None:
        return Verification(
            output["path"], "output", (f"{path} is not what dvc.lock has (md5), and DVC's cache has no list",)
        )
    damage = [f"{path / name} is missing" for name in expected if name not in found]
    damage += [
        f"{path / name} is not what dvc.lock has (md5)"
        for name in found
        if found[name] != expected.get(name, found[name])
    ]
    damage += [f"{path / name} is new: dvc.lock does not have it" for name in found if name not in expected]
    return Verification(output["path"], "output", tuple(damage))


def verify_cached(root: Path, output: dict[str, Any]) -> Verification | None:
    """Compare DVC's copies of an output with their names, which are their MD5; None where the cache has none."""
    md5 = str(output["md5"])
    try:
        copies = {cached_object(root, md5)}
    except (UserError, ValueError):
        return None  # doctor says what is wrong with DVC's settings, `verify_output` what is with dvc.lock
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # a damaged list of a folder's files
        copies |= {source for source, _ in cached_files(md5, Path(output["path"]), cache_directory(root))}
    there = sorted(path for path in copies if path.is_file())
    damage = [f"{path} is damaged" for path in there if md5_file(path) != path.parent.name + path.stem]
    return Verification(f"{output['path']} in DVC's cache", "cache", tuple(damage)) if there else None


def listing_md5(files: dict[str, str]) -> str:
    """DVC's hash of a folder: the MD5 of the JSON list of its files and their MD5s."""
    entries = [
        {"md5": md5, "relpath": name} for name, md5 in sorted(files.items(), key=lambda item: item[0].split("/"))
    ]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def listed_files(root: Path, md5: str) -> dict[str, str] | None:
    try:
        entries = read_json(cached_object(root, md5))
        return {entry["relpath"]: entry["md5"] for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def md5_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def verify_store() -> Verification:
    """Run SQLite's integrity_check on the MLflow database."""
    from gpt2ops.maintenance.local_store import database, open_database

    try:
        with open_database(database()) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
    except sqlite3.Error as error:
        found = [one_line(error)]
    damage = [f"{database()}: {' '.join(line.split())}" for line in found if line != "ok"]
    return Verification(str(database()), "store", tuple(damage))


def _reason(error: UserError) -> str:
    return str(error).splitlines()[0].partition(";")[0].rstrip(".")
