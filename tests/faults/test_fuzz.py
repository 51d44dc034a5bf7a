"""The short form of `python -m tests.harness.fuzz`, and whether it would notice; every byte of what has a hash."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.data.tokens import open_tokens
from gpt2core.data.writer import write_tokens
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.training.checkpoint import DamagedCheckpointError, save_checkpoint, verify_checkpoint
from gpt2ops.maintenance.verify import verify_tokens
from tests.harness.fuzz import harness, models
from tests.harness.fuzz.areas import AREAS
from tests.harness.fuzz.harness import Area, Tally, run_area

CASES = 30


@pytest.mark.parametrize("name", AREAS)
def test_spoiled_inputs_are_taken_or_refused_with_a_line(name: str, tmp_path: Path) -> None:
    tally = run_area(AREAS[name], range(CASES), 2026, tmp_path / "work", tmp_path / "kept")
    assert tally.faults == []
    assert tally.cases == CASES
    assert tally.taken + tally.refused == CASES


def test_the_same_seed_gives_the_same_cases(tmp_path: Path) -> None:
    first, second = (
        run_area(AREAS["corpus"], range(2 * CASES), 7, tmp_path / run, tmp_path / "kept") for run in ("first", "second")
    )
    assert (first.taken, first.refused, first.places) == (second.taken, second.refused, second.places)
    assert first.taken > 3
    assert len(first.places) > 3


def _raise(error: BaseException) -> None:
    raise error


def _grow() -> None:
    bytearray(b"x") * (harness.GROWTH_BYTES + 50 * 2**20)


@pytest.mark.parametrize(
    ("act", "fault"),
    [
        (lambda: _raise(KeyError("x")), "KeyError at"),
        (lambda: _raise(MemoryError()), "MemoryError at"),
        (lambda: _raise(FileNotFoundError(2, "no such file")), "FileNotFoundError at"),
        (lambda: _raise(_UnfilteredError("two\nlines")), "a message of 2 lines"),
        (lambda: _raise(_UnfilteredError("x" * 1001)), "a line of 1,001 characters"),
        (lambda: _raise(_UnfilteredError("a\x1b[31m")), "in a message"),
        (lambda: Path("a.partial").write_text("x"), "left 'a.partial' half-written"),
        (lambda: _spin(), "hangs: 1 s of computing"),
        (lambda: time.sleep(60), "hangs: no end after 4 s"),
        (_grow, "MiB"),
        (lambda: _raise(SystemExit(3)), "left with 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process died (SIGKILL)"),
    ],
)
def test_each_kind_of_fault_is_noticed_with_the_command_that_shows_it_again(
    act: Callable[[], Any], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "CPU_SECONDS", 1)
    monkeypatch.setattr(harness, "REAL_SECONDS", 4.0 if "no end" in fault else 60.0)

    def case(_: None, rng: random.Random, folder: Path) -> None:
        (folder / "input").write_text("the input")
        if folder.name == "case" and rng.random() == random.Random("5 trial 1").random():
            act()

    area = Area("trial", 1, lambda _: None, case)
    tally = run_area(area, range(3), 5, tmp_path / "work", tmp_path / "kept")
    (line,) = tally.faults
    assert fault in line
    assert line.endswith("python -m tests.harness.fuzz --only trial --seed 5 --case 1")
    assert (tally.cases, tally.taken) == (3, 2)
    assert (tmp_path / "kept/trial-5-1/input").read_text() == "the input"


class _UnfilteredError(UserError):
    """As every UserError would be without its own care for lines."""

    def __str__(self) -> str:
        return self.raw

    def __init__(self, raw: str) -> None:
        super().__init__(raw)
        self.raw = raw


def _spin() -> None:
    while True:
        pass


# Every byte of what has a hash


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    fragments = [piece for number in range(20) for piece in (f"Text {number} of many words.", "<|endoftext|>")]
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    write_tokens(root / "tokens", fragments, source="test", shares=shares, shard_tokens=60)
    torch.manual_seed(0)
    model = GPT(GPTConfig(13, 4, n_layer=1, n_head=1, n_embd=2))
    save_checkpoint(root / "checkpoint", model, {"moment": torch.ones(3)}, {"step": 1, "fingerprint": {}})
    return root


def check_tokens(directory: Path) -> None:
    open_tokens(directory).verify()


@pytest.mark.parametrize("part", ["tokens", "checkpoint"])
def test_a_flipped_bit_a_cut_anywhere_and_swapped_files_are_found_by_their_hash(
    part: str, whole: Path, tmp_path: Path
) -> None:
    check = check_tokens if part == "tokens" else verify_checkpoint
    folder = tmp_path / part
    shutil.copytree(whole / part, folder)
    check(folder)
    rng = random.Random(1)
    files = sorted(file for file in folder.iterdir() if file.name != "manifest.json")
    tried = 0
    for file in files:
        content = file.read_bytes()
        for at in range(0, len(content), 1 + len(content) // 400):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
            with pytest.raises(UserError, match=file.name):
                check(folder)
            tried += 1
        for length in range(0, len(content), 7 + len(content) // 50):
            file.write_bytes(content[:length])
            with pytest.raises(UserError, match=file.name):
                check(folder)
        for other in files:
            file.write_bytes(other.read_bytes() if other != file else content + b"\0")
            if file.read_bytes() != content:
                with pytest.raises(UserError, match=file.name):
                    check(folder)
        file.write_bytes(content)
    check(folder)
    assert tried > 400


def test_a_flipped_bit_in_a_manifest_never_lets_other_tokens_pass(whole: Path, tmp_path: Path) -> None:
    """The manifest has no hash of its own: what of it can change without being found are words about the text."""
    folder = tmp_path / "tokens"
    shutil.copytree(whole / "tokens", folder)
    manifest = folder / "manifest.json"
    content = manifest.read_bytes()
    expected = [open_tokens(folder).split(name).read(0, 5).tolist() for name in ("train", "val", "test")]
    passed = 0
    for at in range(0, len(content), 3):
        manifest.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            opened = open_tokens(folder)
            opened.verify()
            found = [opened.split(name).read(0, 5).tolist() for name in ("train", "val", "test")]
        except UserError:
            continue
        assert found == expected
        assert not verify_tokens(folder).damage
        passed += 1
    assert passed < len(content) / 15


def test_a_checkpoints_manifest_cannot_be_bent_to_hide_a_change(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(whole / "checkpoint", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    manifest = folder / "manifest.json"
    content = manifest.read_bytes()
    for at in range(0, len(content), 3):
        manifest.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(DamagedCheckpointError):
            verify_checkpoint(folder)


def test_a_tally_is_the_sum_of_its_parts() -> None:
    total = Tally()
    total.add(Tally(cases=2, taken=1, refused=1, slowest=0.5, slowest_case=4))
    total.add(Tally(cases=1, faults=["x"], slowest=0.2))
    assert (total.cases, total.taken, total.refused, total.faults, total.slowest_case) == (3, 1, 1, ["x"], 4)


def test_spoiling_a_folder_changes_nothing_outside_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(b"of the system")
    for seed in range(1000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "a").write_bytes(b"content")
        (folder / "b").symlink_to(outside)
        models.spoil_folder(random.Random(seed), folder)
        assert outside.read_bytes() == b"of the system"
        shutil.rmtree(folder)
