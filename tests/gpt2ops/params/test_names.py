"""Names that come from a store, a hub or an address cannot leave the folder they are for, nor pass for an option."""

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gpt2core.errors import UserError
from gpt2core.importing.hub import is_hub_name
from gpt2ops.corpora import hub as hub_dataset
from gpt2ops.corpora import sources
from gpt2ops.maintenance import rerun
from gpt2ops.params.schema import parse_params
from gpt2ops.registry.download import checkpoint_directory

OUT = ["..", "../x", "a/..", "a/../x", "../../etc/x", "/etc", "a/b/..", "a/b/../../x", "a//b", "a/b/c/d", "-x/y", ""]


@pytest.mark.parametrize("name", OUT)
def test_a_data_set_of_the_hub_has_a_name_and_no_path(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda _: False)  # a local folder may be named by its path
    with pytest.raises(UserError, match=r"must be hf:OWNER/NAME"):
        hub_dataset.save_dataset(name, "text", tmp_path)


def test_a_split_whose_name_is_a_path_writes_no_file(tmp_path, monkeypatch) -> None:
    import datasets

    (tmp_path / "raw").mkdir()
    for split in ("../outside", "/etc/x", "a/b", ".."):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, split=split, **__: {split: iter([{"text": "evil"}])})
        with pytest.raises(UserError, match="not a valid file name"):
            hub_dataset.save_dataset("me/plays", "text", tmp_path / "raw")
    assert [path.name for path in tmp_path.rglob("*")] == ["raw"]


@pytest.mark.parametrize("name", OUT)
def test_a_model_of_the_hub_has_a_name_and_no_path(name) -> None:
    assert not is_hub_name(name)


@pytest.mark.parametrize("path", ["..%2f..%2fx.txt", "a/..%2F..%2F..%2Fx.txt", "%2Fetc%2Fx.txt", "a/../../x.txt"])
def test_the_file_of_an_address_is_a_name(path) -> None:
    assert sources._file_name(f"https://host/{path}") == "x.txt"


def test_an_archive_is_no_text_and_nothing_is_unpacked(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("evil")
    with tarfile.open(tmp_path / "corpus.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x.txt", arcname="../../outside.txt")
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError):
        sources.collect(parse_params({"data": {"source": "corpus.tar.gz"}}).data, tmp_path / "raw")
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize("run_id", ["../../x", "/etc", "..", "a/b", "", "a\\b"])
def test_a_run_that_a_store_names_becomes_no_path(run_id, tmp_path, monkeypatch) -> None:
    class Store:
        def download_artifacts(self, *_: Any) -> str:
            raise AssertionError("it was asked for")

    monkeypatch.setenv("GPT2_PROJECT_ROOT", str(tmp_path / "project"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="which is no id"):
        checkpoint_directory(Store(), run_id, "0" * 64, "model.init", pause_seconds=0)  # type: ignore[arg-type]
    assert list(tmp_path.rglob("*")) == []


def test_a_commit_that_a_store_names_is_no_option_for_git(tmp_path, monkeypatch) -> None:
    """`git archive` writes where --output says, and runs what --remote says."""
    asked: list[Any] = []
    monkeypatch.setattr(subprocess, "run", lambda *command, **_: asked.append(command))
    monkeypatch.setattr(rerun, "code_sha256", lambda: "ours")
    for commit in (f"--output={tmp_path}/x", "--remote=ext::sh -c touch% x", "HEAD", "main:secret"):
        run = rerun.Run.__new__(rerun.Run)
        object.__setattr__(run, "tags", {"code_sha256": "other", "code_commit": commit})
        object.__setattr__(run, "run_id", "0" * 32)
        with pytest.raises(UserError, match="was made by different code"):
            rerun._other_code(run)
    assert asked == []
