"""`gpt2 verify`: every file that is not what was written is named, and whole ones are not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.data.writer import write_tokens
from gpt2core.model import GPT
from gpt2core.storage.files import sha256_file, write_json
from gpt2core.training.checkpoint import save_checkpoint
from gpt2ops.pipeline import paths
from tests.support.maintained import Commands, copy_of, in_project, write_project

MAKE = """
from pathlib import Path
from gpt2core.storage.files import sha256_file
for name in ("a/b.txt", "a.txt", "a-x.txt", "Naïve 日本.txt"):
    file = Path("reports/plots") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(name)
Path("reports/registered.json").write_text("{}")
"""
PIPELINE = "stages: {plot: {cmd: python make.py, outs: [reports/plots, reports/registered.json]}}"


@pytest.fixture
def gpt2(monkeypatch, capsys) -> Commands:
    return Commands(monkeypatch, capsys)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Tokens in several shards, checkpoints, models/best, and outputs that DVC itself has written down."""
    root = tmp_path_factory.mktemp("template")
    write_project(root)
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "make.py").write_text(MAKE)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    fragments = [piece for number in range(40) for piece in (f"Text {number} of many words.", "<|endoftext|>")]
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    write_tokens(root / paths.TOKENS, fragments, source="test", shares=shares, shard_tokens=60)
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, 16, n_layer=1, n_head=2, n_embd=8))
    for step in (4, 8):
        state = {"step": step, "fingerprint": {}, "finished": None, "extra": {}}
        save_checkpoint(root / paths.CHECKPOINTS / f"ab/step-{step:08d}", model, {"moment": torch.zeros(3)}, state)
    model.save_pretrained(root / paths.BEST_MODEL)
    return root


@pytest.fixture
def project(template, tmp_path, monkeypatch) -> Path:
    return copy_of(template, tmp_path, monkeypatch)


def flip(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def damage(gpt2: Commands, *arguments: str) -> list[str]:
    result = gpt2("verify", "--json", *arguments)
    named = [line for item in result.json for line in item["damage"]]
    assert result.code == bool(named)
    return named


def test_a_whole_project_is_whole_with_everything_that_has_a_hash(project, gpt2) -> None:
    result = gpt2("verify")
    assert (result.code, result.out.splitlines()[-1]) == (0, "all whole")
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("whole")] == [
        "tokens", "checkpoint", "checkpoint", "model", "output", "cache", "output", "cache",
    ]  # fmt: skip


def test_shards_that_were_cut_changed_swapped_or_lost_are_each_named(project, gpt2) -> None:
    tokens = project / paths.TOKENS
    first, second, third, fourth = (tokens / f"train-{number:05d}.bin" for number in range(4))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    third.write_bytes(third.read_bytes()[:-2])
    fourth.unlink()
    flip(tokens / "val-00000.bin")
    flip(tokens / "test-documents.bin")
    assert damage(gpt2, "data/tokens") == [
        "data/tokens/train-00000.bin has the contents of train-00001.bin",
        "data/tokens/train-00001.bin has the contents of train-00000.bin",
        "data/tokens/train-00002.bin has 118 bytes, expected 120",
        "data/tokens/train-00003.bin is missing",
        "data/tokens/val-00000.bin was changed (sha256)",
        "data/tokens/test-documents.bin was changed (sha256)",
    ]


NOISE = (
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"format_version": 9}',
    b'{"format_version": 1, "splits": 3, "sha256": 1, "tokens": 1}',
    b'{"format_version": 1, "splits": {"train": {}}, "sha256": 1, "tokens": 1}',
)


@pytest.mark.parametrize("content", NOISE)
def test_a_manifest_of_noise_is_damage_and_no_traceback(content, project, gpt2) -> None:
    (project / paths.TOKENS / "manifest.json").write_bytes(content)
    (line,) = damage(gpt2)
    assert "manifest.json" in line


def test_a_manifest_cannot_lead_out_of_its_folder(project, gpt2) -> None:
    outside = project / "outside.bin"
    shutil.move(project / paths.TOKENS / "val-00000.bin", outside)
    manifest = project / paths.TOKENS / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"val-00000.bin"', '"../../outside.bin"'))
    assert damage(gpt2, "data/tokens") == ["data/tokens/outside.bin is missing"]


def test_damaged_checkpoints_are_named_by_file(project, gpt2) -> None:
    older, newer = sorted((project / paths.CHECKPOINTS / "ab").iterdir())
    flip(older / "model.safetensors")
    (newer / "trainer.json").write_text("{}")
    first, second = damage(gpt2, "models/checkpoints")
    assert "step-00000004/model.safetensors was changed" in first
    assert "step-00000008/trainer.json is missing or truncated" in second


def test_models_best_is_held_against_what_its_run_wrote(project, gpt2) -> None:
    weights = project / paths.BEST_MODEL / "model.safetensors"
    write_json(project / paths.RUN, {"run_id": "ab" * 16, "weights_sha256": sha256_file(weights)})
    assert damage(gpt2, "models/best") == []
    flip(weights)
    (line,) = damage(gpt2, "models/best")
    assert "is not what its run wrote" in line
    earlier = {"run_id": "cd" * 16}  # of a version that recorded the hash of a registered model only
    write_json(project / paths.RUN, earlier)
    assert damage(gpt2, "models/best") == []
    write_json(project / paths.REGISTERED, {**earlier, "weights_sha256": "0"})
    assert "is not what its run wrote" in damage(gpt2, "models/best")[0]
    write_json(project / paths.REGISTERED, {"run_id": "of another run", "weights_sha256": "0"})
    assert damage(gpt2, "models/best") == []
    weights.write_bytes(weights.read_bytes()[:50])
    assert "cannot be read" in damage(gpt2, "models/best")[0]


def test_files_of_an_output_that_changed_came_or_went_are_named_by_dvcs_own_list(project, gpt2) -> None:
    plots = project / paths.PLOTS
    (plots / "a/b.txt").write_text("other")
    (plots / "a.txt").unlink()
    (plots / "new.txt").touch()
    (project / paths.REGISTERED).write_text("[]")
    assert sorted(damage(gpt2)) == [
        f"{plots}/a.txt is missing",
        f"{plots}/a/b.txt is not what dvc.lock has (md5)",
        f"{plots}/new.txt is new: dvc.lock does not have it",
        f"{project / paths.REGISTERED} is not what dvc.lock has (md5)",
    ]
    shutil.rmtree(project / ".dvc/cache")
    assert any("DVC's cache has no list" in line for line in damage(gpt2, "reports/plots"))


def test_an_output_that_is_not_here_is_absent_and_not_damaged(project, gpt2) -> None:
    shutil.rmtree(project / paths.PLOTS)
    result = gpt2("verify")
    assert result.code == 0
    assert "absent   output      reports/plots" in result.out


def test_the_mlflow_database_is_checked_to_its_last_page(project, gpt2) -> None:
    import sqlite3

    (project / "mlruns").mkdir()
    file = project / "mlruns/mlflow.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE runs (id TEXT PRIMARY KEY, note TEXT)")
        connection.executemany("INSERT INTO runs VALUES (?, ?)", [(str(n), "x" * 500) for n in range(200)])
    connection.close()
    assert damage(gpt2) == []
    content = bytearray(file.read_bytes())
    content[-4096:] = b"\x5a" * 4096
    file.write_bytes(content)
    assert all("mlflow.db" in line for line in damage(gpt2))
    assert damage(gpt2)


def test_what_has_no_hashes_or_is_not_there_is_one_line(project, tmp_path, monkeypatch, gpt2) -> None:
    for argument in ("nowhere", "dvc.yaml"):
        result = gpt2("verify", argument)
        assert (result.code, len(result.err.splitlines())) == (1, 1)
    (project / "dvc.lock").write_text("<<<<")
    result = gpt2("verify", "dvc.yaml")
    assert (result.code, "dvc.lock is damaged" in result.err) == (1, True)
    (tmp_path / "empty").mkdir()
    in_project(tmp_path / "empty", monkeypatch)
    assert "nothing to verify" in gpt2("verify").err


@pytest.mark.parametrize("outs", ["[{md5: x}]", "[{md5: x, path: 1}]", "[x]", "3"])
def test_a_lock_file_whose_outputs_are_none_is_damaged(tmp_path: Path, outs: str) -> None:
    from gpt2core.errors import UserError
    from gpt2ops.maintenance.verify import tracked_outputs

    (tmp_path / "dvc.lock").write_text(f"schema: '2.0'\nstages: {{plot: {{cmd: x, outs: {outs}}}}}\n")
    if outs == "[x]":  # a text without a hash is no output
        assert tracked_outputs(tmp_path) == []
        return
    with pytest.raises(UserError, match="dvc.lock is damaged"):
        tracked_outputs(tmp_path)
