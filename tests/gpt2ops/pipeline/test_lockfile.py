"""What a kill leaves of DVC's own files, and that the pipeline goes on after it."""

import shutil
from pathlib import Path

import pytest
import zc.lockfile

from gpt2ops.pipeline.lockfile import LOCK, mend
from tests.support.command import Result, run_here
from tests.support.small_project import TINY, Project, copy_sources

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    shutil.copy(ROOT / "dvc.lock", tmp_path)
    return tmp_path


def test_whole_files_stay(folder: Path) -> None:
    (folder / ".dvc/tmp/rwlock").write_text('{"read": {}, "write": {}}')
    before = (folder / "dvc.lock").read_bytes()
    assert mend(folder) == []
    assert (folder / "dvc.lock").read_bytes() == before
    assert (folder / ".dvc/tmp/rwlock").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.21, 0.52, 0.77])
def test_a_lock_file_that_was_cut_off_is_set_aside(share: float, folder: Path) -> None:
    content = (folder / "dvc.lock").read_bytes()
    middle = content.find(b"\n      hash: md5", int(len(content) * share)) if share else 0
    cut = content[: middle + len("\n      hash")] if share else b""
    (folder / "dvc.lock").write_bytes(cut)
    (line,) = mend(folder)
    assert "dvc.lock was cut off by a kill and is now dvc.lock.damaged" in line
    assert not (folder / "dvc.lock").exists()
    assert (folder / "dvc.lock.damaged").read_bytes() == cut


def test_a_list_of_locks_that_was_cut_off_is_removed(folder: Path) -> None:
    (folder / ".dvc/tmp/rwlock").write_text('{"read": {"/a": [{"pid": 1')
    (line,) = mend(folder)
    assert "rwlock was cut off by a kill and is removed" in line
    assert not (folder / ".dvc/tmp/rwlock").exists()


def test_a_file_that_dvc_is_just_writing_is_left_alone(folder: Path) -> None:
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages:\n  download:\n    cmd")
    lock = zc.lockfile.LockFile(str(folder / LOCK))  # as DVC does
    assert mend(folder) == []
    assert (folder / "dvc.lock").exists()
    lock.close()
    assert len(mend(folder)) == 1


@pytest.mark.slow
def test_the_stages_come_back_from_the_cache_after_a_lock_file_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_sources(tmp_path)
    project = Project(tmp_path, {**TINY, "train": {**TINY["train"], "stop": {"max_steps": 3, "target_loss": None}}})
    project.dvc("config", "--local", "core.no_scm", "true")
    project.dvc("repro")
    run = project.root / "models/run.json"
    before = (run.read_bytes(), (tmp_path / "models/best/model.safetensors").read_bytes())
    lock_file = tmp_path / "dvc.lock"
    lock_file.write_bytes(lock_file.read_bytes().rpartition(b": md5")[0])
    assert "invalid" in project.dvc("repro", check=False).stderr  # so DVC alone does not go on
    monkeypatch.chdir(tmp_path)
    told: Result = run_here(capsys, monkeypatch, "doctor")
    assert "doctor --mend" in told.out
    told = run_here(capsys, monkeypatch, "doctor", "--mend")
    assert "dvc.lock was cut off by a kill" in " ".join(told.out.split())
    output = project.dvc("repro").stdout
    assert "Running stage 'finetune'" not in output
    assert (run.read_bytes(), (tmp_path / "models/best/model.safetensors").read_bytes()) == before
    assert "up to date" in project.dvc("status").stdout
