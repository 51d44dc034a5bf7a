"""The loop: resume, accumulation, stop rules, best and last checkpoints, data-parallel curves."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.training.checkpoint import newest_valid, step_directories
from tests.support.training import Heard, fit, make_trainer, without_speed
from tests.support.waiting import HANGS


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("cut_after", "micro_batch_size", "optimizer"),
    [(1, None, "adamw"), (7, 2, "adamw"), (11, 1, "muon"), (5, None, "adafactor")],
)
def test_resumed_run_is_bit_equal_to_an_uninterrupted_one(
    tmp_path, precision, cut_after, micro_batch_size, optimizer
) -> None:
    changes = {"precision": precision, "micro_batch_size": micro_batch_size, "optimizer": optimizer}
    whole = make_trainer(tmp_path / "whole", **changes)
    expected, _ = fit(whole)
    for cut in (cut_after, cut_after + 5):
        interrupted = make_trainer(tmp_path / "cut", **changes)
        interrupted.resume()
        asked = iter(range(10_000))
        micro_steps = 4 // (micro_batch_size or 4)
        remaining = (cut - interrupted.step) * micro_steps + micro_steps // 2
        interrupted.interrupted = lambda asked=asked, remaining=remaining: next(asked) >= remaining
        result, _ = fit(interrupted)
        assert (result.stop_reason, result.steps) == ("interrupted", cut)
    resumed = make_trainer(tmp_path / "cut", **changes)
    assert resumed.resume()
    result, _ = fit(resumed)
    for (name, parameter), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(parameter, other), name
    assert without_speed(resumed.history) == without_speed(whole.history)
    assert (result.steps, result.train_loss, result.best_val_loss) == (
        expected.steps,
        expected.train_loss,
        expected.best_val_loss,
    )


def test_accumulated_micro_batches_give_the_update_of_the_whole_batch(tmp_path) -> None:
    curves = []
    for micro_batch_size in (None, 1):
        trainer = make_trainer(tmp_path / str(micro_batch_size), drop_rate=0.0, micro_batch_size=micro_batch_size)
        curves.append(fit(trainer)[1].losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_loss_falls_and_the_best_and_last_checkpoints_are_kept(tmp_path) -> None:
    trainer = make_trainer(tmp_path, max_steps=60)
    result, heard = fit(trainer)
    assert heard.losses[-1] < heard.losses[0] - 0.5
    assert result.best_val_loss == min(row["val_loss"] for row in heard.rows if row["val_loss"] is not None)
    assert heard.best[-1][1:] == ("val_loss", pytest.approx(result.best_val_loss))
    assert [path.name for path in step_directories(tmp_path)] == ["step-00000056", "step-00000060"]
    assert GPT.from_pretrained(tmp_path / "best").config == trainer.model.config
    assert len(heard.samples) == 12
    assert all(len(token_ids) == 4 for _, token_ids in heard.samples)


@pytest.mark.parametrize("metric", ["train_batch", "train_ema", "train_full", "val"])
def test_a_target_stops_the_run_and_the_full_pass_is_recorded(tmp_path, metric) -> None:
    trainer = make_trainer(tmp_path, max_steps=400, learning_rate=1e-2, target_loss=2.3, metric=metric)
    result, heard = fit(trainer)
    assert (result.stop_reason, result.target_reached) == ("target_loss", True)
    assert result.steps < 400
    trainer.model.eval()
    rows = [trainer.train_batches.split.read(i, i + 9).astype(np.int64) for i in range(0, 991, 8)]
    ids = torch.tensor(np.stack(rows))
    with torch.no_grad():
        full = torch.nn.functional.cross_entropy(trainer.model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()
    assert result.train_loss_full == pytest.approx(full, abs=2e-3)
    if metric == "train_full":
        assert result.train_loss_full <= 2.3
    told = any("a full pass over train gives" in note for note in heard.notes)
    assert told == (result.batch_target_step is not None)
    assert told or metric in ("train_full", "val")


@pytest.mark.parametrize("metric", ["train_ema", "train_full"])
def test_a_full_pass_counts_as_little_as_training_speed_as_an_evaluation(tmp_path, monkeypatch, metric) -> None:
    clock = [0.0]
    monkeypatch.setattr("gpt2core.training.trainer.time.perf_counter", lambda: clock[0])
    trainer = make_trainer(tmp_path, max_steps=400, learning_rate=1e-2, target_loss=2.3, metric=metric)

    def wait_during(owner: object, name: str, seconds: float) -> None:
        plain = getattr(owner, name)

        def waiting(*arguments: object, **options: object) -> object:
            clock[0] += seconds
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, name, waiting)

    wait_during(trainer.validation, "full_pass", 1000.0)
    wait_during(trainer.validation, "row", 100.0)
    wait_during(trainer.train_step, "update", 0.5)
    _, heard = fit(trainer)
    speeds = [row["tokens_per_second"] for row in heard.rows if row["tokens_per_second"] is not None]
    assert speeds == [pytest.approx(4 * 8 / 0.5)] * len(speeds)
    assert clock[0] > 1000


@pytest.mark.parametrize("metric", ["train_batch", "train_ema", "train_full"])
def test_the_same_weights_are_never_passed_over_twice(tmp_path, monkeypatch, metric) -> None:
    trainer = make_trainer(tmp_path, max_steps=400, learning_rate=1e-2, target_loss=2.3, metric=metric, eval_interval=1)
    plain, scored = trainer.validation.full_pass, []

    def full_pass() -> float:
        scored.append(trainer.model.lm_head.weight.detach().clone())
        return plain()

    monkeypatch.setattr(trainer.validation, "full_pass", full_pass)
    result, _ = fit(trainer)
    assert result.stop_reason == "target_loss"
    assert scored
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(scored))


def test_patience_counts_evaluations_without_a_new_best(tmp_path) -> None:
    trainer = make_trainer(tmp_path, max_steps=400, learning_rate=1e-9, min_learning_rate=0.0, patience=3)
    result, heard = fit(trainer)
    assert result.stop_reason == "patience"
    assert len([row for row in heard.rows if row["val_loss"] is not None]) - (heard.best[-1][0] // 5) == 3


def test_epochs_limit_a_run_and_evaluation_can_be_once_an_epoch(tmp_path) -> None:
    trainer = make_trainer(tmp_path, max_steps=None, max_epochs=2, eval_interval=None)
    result, heard = fit(trainer)
    assert (result.stop_reason, result.steps) == ("max_epochs", math.ceil(2 * trainer.epochs.batches))
    assert [row["step"] for row in heard.rows if row["val_loss"] is not None] == [32, 63]  # 31.25 batches each


def test_samples_can_come_once_an_epoch_beside_frequent_evaluations(tmp_path) -> None:
    trainer = make_trainer(tmp_path, max_steps=70, sample_interval="epoch")
    _, heard = fit(trainer)
    assert [step for step, _ in heard.samples] == [32, 63]  # 31.25 batches each


def test_a_shorter_run_leaves_the_checkpoints_of_a_longer_one(tmp_path) -> None:
    fit(make_trainer(tmp_path, max_steps=20))
    shorter = make_trainer(tmp_path, max_steps=5)
    assert not shorter.resume()
    shorter.start_over()
    _, heard = fit(shorter)
    aside = shorter.checkpoints.with_name(f"{shorter.checkpoints.name}-step-00000020")
    assert any(str(aside) in note for note in heard.notes)
    assert newest_valid(aside)[0].state["step"] == 20
    assert (aside / "best").is_dir()
    assert newest_valid(shorter.checkpoints)[0].state["step"] == 5


def test_a_finished_run_starts_over_and_an_extended_one_goes_on(tmp_path) -> None:
    fit(make_trainer(tmp_path))
    assert not make_trainer(tmp_path).resume()
    longer = make_trainer(tmp_path, max_steps=30)
    assert longer.resume()
    assert fit(longer)[0].steps == 30


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path) -> None:
    fit(make_trainer(tmp_path))
    with pytest.raises(UserError, match="learning_rate differ"):
        make_trainer(tmp_path, learning_rate=1.0).resume()


def test_a_loss_that_is_not_finite_leaves_the_weights_and_stops_after_some_steps(tmp_path) -> None:
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.wpe.weight[0] = math.nan
    before = trainer.model.wte.weight.clone()
    heard = Heard()
    trainer.listeners = (heard,)
    with pytest.raises(UserError, match="not finite in 10 steps in a row"):
        trainer.fit()
    assert torch.equal(trainer.model.wte.weight, before)
    assert "batch 0 is skipped" in heard.notes[1]
    assert all(value is None or math.isfinite(value) for row in heard.rows for value in row.values())


def test_a_damaged_checkpoint_is_told_to_listeners_that_come_after_the_resume(tmp_path) -> None:
    fit(make_trainer(tmp_path))
    (step_directories(tmp_path)[-1] / "trainer.json").write_text("{")
    trainer = make_trainer(tmp_path, max_steps=30)
    assert trainer.resume()
    assert any("set aside as damaged-step-00000020" in note for note in fit(trainer)[1].notes)


def test_a_removed_best_model_is_made_anew_after_a_resume(tmp_path) -> None:
    fit(make_trainer(tmp_path))
    shutil.rmtree(tmp_path / "best")
    trainer = make_trainer(tmp_path, max_steps=21, learning_rate=3e-3)
    assert trainer.resume()
    fit(trainer)
    assert (tmp_path / "best" / "model.safetensors").is_file()


def test_a_run_without_one_finite_evaluation_says_so(tmp_path) -> None:
    trainer = make_trainer(tmp_path, max_steps=2)
    with torch.no_grad():
        trainer.model.wpe.weight[0] = math.nan
    with pytest.raises(UserError, match="no evaluation gave a finite loss"):
        trainer.fit()


def test_a_full_disk_does_not_stop_the_run(tmp_path, monkeypatch) -> None:
    import gpt2core.training.trainer as trainer_module

    real = trainer_module.ckpt.save_checkpoint

    def full_disk_once(directory, *rest) -> None:
        if directory.name == "step-00000008":
            raise OSError(28, "No space left on device")
        real(directory, *rest)

    monkeypatch.setattr(trainer_module.ckpt, "save_checkpoint", full_disk_once)
    result, heard = fit(make_trainer(tmp_path))
    assert result.steps == 20
    assert any("checkpoint at step 8 could not be saved" in note for note in heard.notes)


RANK_SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import torch
from gpt2core import runtime
from tests.support.training import CPU, fit, make_trainer
torch.set_num_threads(1)
runtime.join_process_group(CPU)
_, heard = fit(make_trainer(Path(sys.argv[1]) / "ranks", drop_rate=0.0))
if runtime.rank() == 0:
    (Path(sys.argv[1]) / "losses.json").write_text(json.dumps(heard.losses))
"""


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(tmp_path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK_SCRIPT)
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run([*command, str(tmp_path), str(root)], check=True, timeout=HANGS)
    _, alone = fit(make_trainer(tmp_path / "alone", drop_rate=0.0))
    assert json.loads((tmp_path / "losses.json").read_text()) == pytest.approx(alone.losses, rel=1e-4)
    assert GPT.from_pretrained(tmp_path / "ranks" / "best").config.n_embd == 16


class Products(TorchDispatchMode):
    """Notes the dtypes of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.dtypes.add(args[-1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_a_run_in_fp32_multiplies_no_bf16_matrices(tmp_path, optimizer):
    # On a CPU without AVX-512 one of them takes as long as a step without.
    with Products() as products:
        make_trainer(tmp_path, optimizer=optimizer, max_steps=2).fit()
    assert products.dtypes == {torch.float32}
