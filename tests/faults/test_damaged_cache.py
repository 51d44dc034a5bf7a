"""One wrong bit in DVC's own copy of the weights: no later stage uses it, and what `gpt2 verify` advises heals it."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.small_project import TINY, new_project

pytestmark = pytest.mark.slow
GPT2 = "from gpt2ops.cli.main import main; main()"


def test_weights_that_were_damaged_in_dvcs_cache_are_never_scored_or_registered(tmp_path: Path) -> None:
    root = tmp_path / "project"
    project = new_project(root, TINY)
    project.dvc("repro")
    best = root / "models/best"
    weights, registered = (best / "model.safetensors").read_bytes(), project.report("registered.json")
    copy = copy_of(root, "models/best", "model.safetensors")
    before = copy.stat()
    copy.chmod(0o644)
    flipped = bytearray(weights)
    flipped[-1] ^= 0x40  # the exponent of the last weight
    with copy.open("r+b") as handle:
        handle.write(flipped)
    copy.chmod(before.st_mode)
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))  # so DVC cannot tell
    shutil.rmtree(best)

    more = {**TINY, "evaluate": {**TINY["evaluate"], "max_tokens": TINY["evaluate"]["max_tokens"] + 1}}
    project.set_params(more)
    broken = project.dvc("repro", check=False)
    output = broken.stdout + broken.stderr
    assert broken.returncode != 0, output
    assert (best / "model.safetensors").read_bytes() == bytes(flipped), "DVC brings back what it has"
    assert "model.safetensors is not what its run wrote" in output
    assert project.report("registered.json") == registered

    said = project.run(sys.executable, "-c", GPT2, "verify", check=False)
    assert said.returncode == 1
    damaged = [line.split()[0] for line in said.stdout.splitlines() if line.endswith(" is damaged")]
    assert damaged == [copy.relative_to(root).as_posix()]
    assert "remove the named files" in said.stdout
    assert "dvc checkout" not in said.stdout, "it would bring the damaged copy back"
    for name in damaged:
        (root / name).unlink()
    project.dvc("repro")
    assert (best / "model.safetensors").read_bytes() == weights
    assert "damaged" not in project.run(sys.executable, "-c", GPT2, "verify").stdout.replace("0 damaged", "")


def copy_of(root: Path, output: str, name: str) -> Path:
    """DVC's copy of one file of an output folder."""
    cache = root / ".dvc/cache/files/md5"
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"].values()
    md5 = next(out["md5"] for stage in stages for out in stage["outs"] if out["path"] == output)
    entries = yaml.safe_load((cache / md5[:2] / md5[2:]).read_text())
    own = next(entry["md5"] for entry in entries if entry["relpath"] == name)
    return cache / own[:2] / own[2:]
