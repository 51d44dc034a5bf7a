"""A training on a disk that fills up, saves beside the training, and what a cut run finds again."""

import json
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from gpt2core.data.batches import Batches
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.training.checkpoint import newest_valid, step_directories
from gpt2ops.training.run import describe_saved
from tests.support.full_disk import Filler
from tests.support.training import ArrayTokens, Heard, assert_same_bits, fit, hear, make_trainer
from tests.support.waiting import HANGS


@pytest.mark.parametrize("background", [False, True])
def test_a_run_goes_on_while_the_disk_is_full_and_saves_again_when_there_is_room(
    small_disk, tmp_path, background
) -> None:
    whole = make_trainer(tmp_path / "whole")
    fit(whole)
    trainer = make_trainer(small_disk / "run", background_saves=background)
    heard = hear(trainer, Filler(small_disk, fill=6, free=14))
    assert trainer.fit().steps == 20
    assert heard.left == []  # a save that failed leaves nothing behind that eats the disk
    failed = [note for note in heard.notes if "could not be saved" in note]
    assert [re.search(r"(checkpoint|best).*\bstep (\d+)", note).groups() for note in failed] == [
        ("checkpoint", "8"),
        ("best", "10"),
        ("checkpoint", "12"),
    ]
    assert all("No space left on device" in note for note in failed)
    assert_same_bits(trainer, whole)
    assert [path.name for path in step_directories(small_disk / "run")] == ["step-00000016", "step-00000020"]
    best = (tmp_path / "whole/best/model.safetensors").read_bytes()
    assert (small_disk / "run/best/model.safetensors").read_bytes() == best


def test_a_disk_that_stays_full_ends_the_run_with_one_line_and_the_next_start_finishes_it(small_disk, tmp_path) -> None:
    whole = make_trainer(tmp_path / "whole")
    fit(whole)
    trainer = make_trainer(small_disk / "run")
    heard = hear(trainer, Filler(small_disk, fill=17, free=None))
    with pytest.raises(UserError) as error:
        trainer.fit()
    (line,) = str(error.value).splitlines()
    for fact in ("step 20", f"{small_disk}/run/best", "No space left on device", f"{small_disk}/run/step-00000016"):
        assert fact in line
    heard.ballast.unlink()
    again = make_trainer(small_disk / "run")
    assert again.resume()
    fit(again)
    assert_same_bits(again, whole)


def test_a_limit_on_the_size_of_files_is_survived_like_a_full_disk(tmp_path) -> None:
    resource = pytest.importorskip("resource")
    trainer = make_trainer(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Limit(Heard):
        def on_step(self, trainer, train_loss) -> None:
            if trainer.step in (6, 14):
                soft = 8192 if trainer.step == 6 else before[0]
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    heard = hear(trainer, Limit())
    try:
        assert trainer.fit().steps == 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [re.search(r"step (\d+)", note)[1] for note in heard.notes] == ["8", "10", "12"]
    assert newest_valid(tmp_path)[0].state["step"] == 20


def test_best_weights_that_are_not_on_the_disk_are_in_no_checkpoint_either(small_disk) -> None:
    """Else a run that is killed then would come back with the best of before."""
    trainer = make_trainer(small_disk / "run")
    heard = hear(trainer, Filler(small_disk, fill=9, free=None))
    original = trainer.writer._write_best

    def room_but_not_for_the_best(model) -> None:
        heard.ballast.unlink(missing_ok=True)
        if trainer.step > 5:
            heard.fill_up()
        try:
            original(model)
        finally:
            heard.ballast.unlink(missing_ok=True)

    trainer.writer._write_best = room_but_not_for_the_best
    with pytest.raises(UserError, match="of step 20, could not be written"):
        trainer.fit()
    assert newest_valid(small_disk / "run")[0].state["stop"]["best_step"] == 5


def test_saves_beside_the_training_give_the_same_bits_and_are_all_there_at_the_end(tmp_path) -> None:
    at_once, beside = make_trainer(tmp_path / "a"), make_trainer(tmp_path / "b", background_saves=True)
    fit(at_once)
    _, heard = fit(beside)
    assert_same_bits(at_once, beside)
    assert heard.best[-1][0] == beside.rules.state.best_step
    for name in ("best", "step-00000016", "step-00000020"):
        files = ["model.safetensors", *(["optimizer.safetensors"] if name != "best" else [])]
        for file in files:
            assert (tmp_path / "a" / name / file).read_bytes() == (tmp_path / "b" / name / file).read_bytes()
    resumed = make_trainer(tmp_path / "b", max_steps=24)
    assert resumed.resume()


def test_a_slow_disk_does_not_hold_up_a_training_with_saves_beside_it(tmp_path, monkeypatch) -> None:
    import gpt2core.training.saver as saving

    real, trained_on = saving.ckpt.save_checkpoint, threading.Event()
    waited: list[bool] = []

    def slow(directory, *rest) -> None:
        if directory.name == "step-00000050":
            waited.append(trained_on.wait(HANGS))
        real(directory, *rest)

    class Listener(Heard):
        def on_step(self, trainer, train_loss) -> None:
            if trainer.step == 55:
                trained_on.set()

    monkeypatch.setattr(saving.ckpt, "save_checkpoint", slow)
    trainer = make_trainer(tmp_path, background_saves=True, eval_interval=1000, max_steps=60, checkpoint_interval=50)
    hear(trainer, Listener())
    trainer.fit()
    assert waited == [True]  # five steps were trained while the save of step 50 was being written
    assert newest_valid(tmp_path)[0].state["step"] == 60


def test_a_failure_that_is_no_full_disk_comes_out_of_the_thread(tmp_path, monkeypatch) -> None:
    import gpt2core.training.saver as saving

    def broken(*arguments) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(saving.ckpt, "save_checkpoint", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        fit(make_trainer(tmp_path, background_saves=True))


def test_what_a_killed_save_left_is_cleared_away_at_the_next_start(tmp_path) -> None:
    fit(make_trainer(tmp_path, max_steps=4))
    (tmp_path / ".step-00000008.partial").mkdir()
    (tmp_path / ".step-00000008.partial" / "model.safetensors").write_bytes(bytes(1000))
    shutil.copytree(tmp_path / "step-00000004", tmp_path / ".step-00000004.old")
    make_trainer(tmp_path, max_steps=8).resume()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-00000000", "step-00000004"]


def test_the_earlier_checkpoint_gets_its_name_back_where_the_new_one_cannot_take_it(tmp_path, monkeypatch) -> None:
    from gpt2core.storage.files import replaced_directory

    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "old").touch()
    real = Path.rename

    def refuse(self, target):
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"), replaced_directory(tmp_path / "best"):
        pass
    assert (tmp_path / "best" / "old").exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [
        {"patience": 2, "learning_rate": 1e-9, "min_learning_rate": 0.0, "max_steps": 400},
        {"target_loss": 2.3, "metric": "train_ema", "learning_rate": 1e-2, "max_steps": 400},
        {"target_loss": 2.3, "metric": "train_batch", "learning_rate": 1e-2, "max_steps": 400},
        {"max_steps": None, "max_epochs": 1.5, "micro_batch_size": 1},
    ],
)
def test_stop_step_reason_best_and_patience_are_the_same_however_often_a_run_was_cut(
    tmp_path, changes, precision
) -> None:
    changes = {**changes, "precision": precision}
    whole = make_trainer(tmp_path / "whole", **changes)
    expected, heard = fit(whole)
    cut_steps = sorted({1, 6, expected.steps // 2, expected.steps - 1} - {0})
    for cut in cut_steps:
        trainer = make_trainer(tmp_path / "cut", **changes)
        trainer.resume()
        trainer.interrupted = lambda trainer=trainer, cut=cut: trainer.step >= cut
        assert fit(trainer)[0].stop_reason == "interrupted"
    last = make_trainer(tmp_path / "cut", **changes)
    assert last.resume()
    result, last_heard = fit(last)
    assert_same_bits(last, whole)
    same = ("steps", "stop_reason", "best_step", "best_val_loss", "train_loss_full", "batch_target_step")
    assert [getattr(result, key) for key in same] == [getattr(expected, key) for key in same]
    assert last_heard.samples == heard.samples[-len(last_heard.samples) :]


def test_seeking_reads_no_more_than_one_batch_wherever_it_goes() -> None:
    class Counted(ArrayTokens):
        read_tokens = 0

        def read(self, start, stop):
            self.read_tokens += stop - start
            return super().read(start, stop)

    for sampler, stride in (("sequential", None), ("shuffled", None), ("sliding", 3)):
        tokens = Counted(20_000, 0)
        batches = Batches(tokens, batch_size=4, sequence_length=8, sampler=sampler, stride=stride, seed=1)
        there = batches.batch(7_654_321)
        assert tokens.read_tokens == 4 * 9, sampler
        fresh = Batches(ArrayTokens(20_000, 0), batch_size=4, sequence_length=8, sampler=sampler, stride=stride, seed=1)
        for number in (3, 7_654_320, 7_654_321):
            walked = fresh.batch(number)
        assert all(np.array_equal(a, b) for a, b in zip(there, walked, strict=True))


def test_a_checkpoint_holds_all_that_a_resume_needs_and_its_manifest_says_whose_it_is(tmp_path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.extra = {"run_id": "abc"}
    fit(trainer)
    directory = step_directories(tmp_path)[-1]
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["step"], manifest["fingerprint"]) == (20, trainer.fingerprint)
    assert set(manifest["files"]) == {path.name for path in directory.iterdir()} - {"manifest.json"}
    assert all(set(facts) == {"size_bytes", "sha256"} for facts in manifest["files"].values())
    state = json.loads((directory / "trainer.json").read_text())
    assert state["extra"] == {"run_id": "abc"}
    assert {"step", "stop", "average", "health", "scaler", "history", "interval_losses"} <= set(state)
    assert GPT.from_pretrained(directory).config == trainer.model.config


def test_a_checkpoint_of_before_the_watch_over_losses_goes_on(tmp_path) -> None:
    fit(make_trainer(tmp_path))
    directory = step_directories(tmp_path)[-1]
    state = json.loads((directory / "trainer.json").read_text())
    del state["health"]
    text = json.dumps(state, indent=2)
    (directory / "trainer.json").write_text(text)
    manifest = json.loads((directory / "manifest.json").read_text())
    import hashlib

    facts = {"size_bytes": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    files = {**manifest["files"], "trainer.json": facts}
    (directory / "manifest.json").write_text(json.dumps({"format_version": 1, "files": files}))
    longer = make_trainer(tmp_path, max_steps=24)
    assert longer.resume()
    assert fit(longer)[0].steps == 24


def test_a_run_asked_to_leave_right_after_a_save_does_not_save_again(tmp_path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.interrupted = lambda: trainer.step >= 8
    fit(trainer)
    made = (tmp_path / "step-00000008").stat().st_mtime_ns
    again = make_trainer(tmp_path)
    again.resume()
    again.interrupted = lambda: True
    assert fit(again)[0].stop_reason == "interrupted"
    assert (tmp_path / "step-00000008").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("full_from", "ends", "kept"),
    [(0, 3, "no checkpoint could be saved"), (6, 7, "the newest checkpoint is at step 4")],
)
def test_an_interrupted_run_says_what_a_full_disk_has_kept_of_it(small_disk, full_from, ends, kept) -> None:
    trainer = make_trainer(small_disk / "run")
    heard = hear(trainer, Filler(small_disk, fill=full_from, free=None))
    if full_from == 0:
        heard.fill_up()
    trainer.interrupted = lambda: trainer.step >= ends
    result = trainer.fit()
    assert result.stop_reason == "interrupted"
    assert describe_saved(trainer.saved_step, result.steps) == kept
    heard.ballast.unlink()
    again = make_trainer(small_disk / "run")
    assert again.resume() == (full_from > 0)
    again.interrupted = lambda: again.step >= ends
    fit(again)
    assert describe_saved(again.saved_step, ends) == "the checkpoint is saved"
