"""What DVC removed before a stage that then failed comes back from its cache."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from tasks import outputs


def store(cache: Path, content: bytes, suffix: str = "") -> str:
    md5 = hashlib.md5(content).hexdigest() + suffix
    path = cache / "files/md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(outputs, "cache_directory", lambda: cache)
    listing = [{"md5": store(cache, b"weights"), "relpath": "sub/model"}, {"md5": store(cache, b"{}"), "relpath": "c"}]
    outs = [
        {"path": "models/best", "md5": store(cache, json.dumps(listing).encode(), ".dir")},
        {"path": "run.json", "md5": store(cache, b"run")},
        {"path": "gone.json", "md5": "0" * 32},
    ]
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": {"finetune": {"outs": outs}}}))
    return tmp_path


def test_files_and_folders_come_back_and_what_the_cache_lacks_stays_away(project: Path) -> None:
    restored = outputs.restore_outputs("finetune")
    assert [path.as_posix() for path in restored] == ["models/best", "run.json"]
    assert (project / "models/best/sub/model").read_bytes() == b"weights"
    assert (project / "run.json").read_bytes() == b"run"
    assert not (project / "gone.json").exists()


def test_what_is_there_is_left_alone(project: Path) -> None:
    (project / "run.json").write_bytes(b"newer")
    outputs.restore_outputs("finetune")
    assert (project / "run.json").read_bytes() == b"newer"


def test_without_a_lock_file_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert outputs.restore_outputs("finetune") == []


@pytest.mark.parametrize(
    "content", ["[" * 3000, "stages: 1", "stages: {plot: {outs: [x]}}", "stages: {plot: {outs: [{}]}}", "\xff"]
)
def test_a_damaged_lock_file_brings_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_bytes(content.encode("latin-1"))
    assert outputs.restore_outputs("plot") == []
