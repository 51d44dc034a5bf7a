"""What DVC removed before a stage that then failed comes back from its cache."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from gpt2ops.pipeline import cache as outputs


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
    assert [path.as_posix() for path in restored.back] == ["models/best", "run.json"]
    assert (project / "models/best/sub/model").read_bytes() == b"weights"
    assert (project / "run.json").read_bytes() == b"run"
    assert not (project / "gone.json").exists()


def test_what_is_there_is_left_alone(project: Path) -> None:
    (project / "run.json").write_bytes(b"newer")
    outputs.restore_outputs("finetune")
    assert (project / "run.json").read_bytes() == b"newer"


def test_without_a_lock_file_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert outputs.restore_outputs("finetune") == outputs.Restored()


@pytest.mark.parametrize(
    "content", ["[" * 3000, "stages: 1", "stages: {plot: {outs: [x]}}", "stages: {plot: {outs: [{}]}}", "\xff"]
)
def test_a_damaged_lock_file_brings_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.lock").write_bytes(content.encode("latin-1"))
    assert outputs.restore_outputs("plot") == outputs.Restored()


@pytest.mark.parametrize("name", ["../outside.txt", "/{root}/outside.txt", "sub/../../outside.txt"])
def test_no_name_in_the_cache_leads_out_of_an_output(project: Path, name: str) -> None:
    cache = project / "cache"
    listing = [{"md5": store(cache, b"evil"), "relpath": name.replace("/{root}", str(project / "models"))}]
    outs = [{"path": "models/best", "md5": store(cache, json.dumps(listing).encode(), ".dir")}]
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"finetune": {"outs": outs}}}))
    assert outputs.restore_outputs("finetune") == outputs.Restored()
    assert not list((project / "models").rglob("outside.txt"))


def test_no_hash_in_a_lock_file_leads_out_of_the_cache(project: Path) -> None:
    (project / "secret.txt").write_text("mine")
    (project / "cache/files/md5/..").mkdir(parents=True, exist_ok=True)
    outs = [{"path": "run.json", "md5": "../../../secret.txt"}]
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"finetune": {"outs": outs}}}))
    assert outputs.restore_outputs("finetune") == outputs.Restored()
    assert not (project / "run.json").exists()


def test_what_a_full_disk_does_not_take_stays_in_the_cache_and_the_rest_comes_back(project: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    resource = pytest.importorskip("resource")
    cache = project / "cache"
    outs = [
        {"path": "large.bin", "md5": store(cache, bytes(100_000))},
        {"path": "small.json", "md5": store(cache, b"{}")},
    ]
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": {"finetune": {"outs": outs}}}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        restored = outputs.restore_outputs("finetune")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert restored == outputs.Restored(back=[Path("small.json")], kept=[Path("large.bin")])
    assert not (project / "large.bin").exists()
    assert outputs.restore_outputs("finetune").back == [Path("large.bin")]
