"""Checks of the machine: Python, packages, device and precision, memory, disk."""

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2core.errors import UserError
from gpt2core.kernels.cores import usable_cores
from gpt2ops.maintenance.doctor.finding import LOOK, OK, WRONG, Finding
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.cache import cache_directory
from gpt2ops.pipeline.code_version import PACKAGE, code_root
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.store.address import is_local

if TYPE_CHECKING:
    from gpt2ops.params.schema import Params

GIB = 2**30
MIN_PYTHON = (3, 11)
MIN_DISK_BYTES = 1 * GIB
MIN_MEMORY_BYTES = 1 * GIB


def python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info < MIN_PYTHON:
        yield Finding(WRONG, "python", f"{version}, expected 3.11 or newer", "make .venv with a newer Python")
    else:
        yield Finding(OK, "python", f"{version} ({sys.executable})")


def packages() -> Iterator[Finding]:
    """Compare the installed packages with requirements.txt."""
    from packaging.requirements import Requirement

    missing, other, count = [], [], 0
    for line in requirement_lines():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "pipeline"}):
            continue
        count += 1
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        # A CPU build calls itself 2.13.0+cpu.
        if not requirement.specifier.contains(found.partition("+")[0], prereleases=True):
            other.append(f"{requirement.name} {found} (pinned {requirement.specifier})")
    remedy = "pip install -r requirements.txt (in the checkout: rm .venv/ready; make setup)"
    if missing:
        yield Finding(WRONG, "packages", f"not installed: {', '.join(missing)}", remedy)
    if other:
        yield Finding(LOOK, "packages", f"not the tested versions: {', '.join(other)}", remedy)
    if not missing and not other:
        yield Finding(OK, "packages", f"all {count} as pinned in requirements.txt")


def requirement_lines() -> list[str]:
    """Requirements from the checkout's requirements.txt, else from the installed package's metadata."""
    file = code_root() / "requirements.txt"
    if file.is_file():
        lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]
    return importlib.metadata.requires(PACKAGE) or []


def device(root: Path) -> Iterator[Finding]:
    """The device and precision that params.yaml selects on this machine; `auto` without that file."""
    from gpt2core import runtime
    from gpt2ops.params.keys import in_stage_words
    from gpt2ops.training.environment import cpu_name, device_name

    wanted_device, wanted_precision, wanted_threads = "auto", "auto", None
    try:
        params = _params(root)
        wanted_device, wanted_precision = params.run.device, params.run.precision
        wanted_threads = params.run.threads
    except (UserError, OSError):
        pass  # the check of params.yaml reports it
    threads = runtime.set_threads(wanted_threads)
    try:
        chosen = runtime.pick_runtime(wanted_device, wanted_precision)
    except UserError as error:
        raise in_stage_words("finetune", error, flags={}) from None
    name = cpu_name() if chosen.device.type == "cpu" else device_name(chosen.device)
    yield Finding(OK, "device", f"{chosen.device} ({name}), precision {chosen.precision}: {chosen.reason}")
    import psutil

    cores = min(psutil.cpu_count(logical=False) or 1, usable_cores())
    text = f"{threads} for {cores} physical cores"
    if threads > cores:
        yield Finding(LOOK, "threads", f"{text}: threads compete for cores", "set run.threads to null")
    else:
        yield Finding(OK, "threads", text)


def memory(root: Path) -> Iterator[Finding]:
    import psutil

    from gpt2ops.training.memory import check_memory, total_memory_bytes

    try:
        params = _params(root)
    except (UserError, OSError):
        params = None
    if params is not None and params.model.init == "scratch" and params.run.device in ("auto", "cpu"):
        from gpt2core.config import GPTConfig

        config = GPTConfig.from_preset(params.model.preset, **params.model.overrides)
        micro = params.train.micro_batch_size or params.train.batch_size // params.run.nproc_per_node
        tokens, optimizer = micro * params.train.sequence_length, params.train.optimizer
        check_memory(config, device="cpu", micro_tokens=tokens, optimizer=optimizer)
    total, free = total_memory_bytes(), psutil.virtual_memory().available
    text = f"{min(free, total) / GIB:.1f} GiB free of {total / GIB:.1f} GiB"
    if free < MIN_MEMORY_BYTES:
        yield Finding(LOOK, "memory", text, "close other programs before a training")
    else:
        yield Finding(OK, "memory", text)


def disk(root: Path) -> Iterator[Finding]:
    """Free space of each file system that a run writes to."""
    seen: dict[int, list[str]] = {}
    free: dict[int, int] = {}
    for name, place in _places(root):
        there = next(parent for parent in (place, *place.parents) if parent.exists())
        number = there.stat().st_dev
        seen.setdefault(number, []).append(name)
        free[number] = shutil.disk_usage(there).free
    need = _bytes_of_a_run(root)
    for number, names in seen.items():
        text = f"{free[number] / GIB:.1f} GiB free for {', '.join(names)}"
        if free[number] < max(need, MIN_DISK_BYTES) / 10:
            yield Finding(WRONG, "disk", text, "free some: `gpt2 gc`, `dvc gc --workspace`")
        elif free[number] < max(need, MIN_DISK_BYTES):
            yield Finding(LOOK, "disk", f"{text}; a run may need {need / GIB:.1f} GiB", "`gpt2 gc`, `dvc gc -w`")
        else:
            yield Finding(OK, "disk", text)


def _places(root: Path) -> Iterator[tuple[str, Path]]:
    yield "the project", root
    try:
        cache = cache_directory(root)
    except UserError:
        cache = None
    if cache is not None:
        yield "DVC's cache", cache
    if is_local():
        yield "the MLflow store", mlruns()


def _bytes_of_a_run(root: Path) -> int:
    """Checkpoints with two moments (one more during a save), the best one, models/best, DVC's cache, MLflow's two."""
    try:
        params = _params(root)
        from gpt2core.config import GPTConfig

        count = GPTConfig.from_preset(params.model.preset, **params.model.overrides).num_parameters
    except (UserError, OSError):
        return 0
    return 4 * count * (3 * (params.train.keep_last + 1) + 6)


def _params(root: Path) -> "Params":
    from gpt2ops.params.schema import load_params

    return load_params(root / paths.PARAMS)
