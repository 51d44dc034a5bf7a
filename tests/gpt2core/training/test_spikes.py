"""Losses that are no numbers, and losses far above those before: told, left out, gone back from."""

import json
import math

import pytest
import torch

from gpt2core.errors import UserError
from gpt2core.training.spikes import LossMonitor
from gpt2core.training.trainer import Trainer
from tests.support.training import Heard, assert_same_bits, fit, hear, make_trainer, without_speed

LONG = {"max_steps": 150, "learning_rate": 1e-2, "warmup_steps": 10, "checkpoint_interval": 20, "log_interval": 1}


def spoil(trainer: Trainer, steps: dict[int, str]) -> Trainer:
    """Make the loss of some batches NaN, infinite, or that of targets drawn by chance, as damaged data gives it."""

    def before(model, arguments):
        token_ids, targets = arguments if len(arguments) == 2 else (arguments[0], None)
        if targets is None or not model.training or steps.get(trainer.step) != "chance":
            return arguments
        generator = torch.Generator().manual_seed(trainer.step)
        return token_ids, torch.randint(0, 23, targets.shape, generator=generator)

    def after(model, arguments, loss):
        if len(arguments) == 2 and model.training and steps.get(trainer.step) in ("nan", "inf"):
            return loss * float(steps[trainer.step])
        return loss

    trainer.model.register_forward_pre_hook(before)
    trainer.model.register_forward_hook(after)
    return trainer


def final_loss(trainer: Trainer) -> float:
    return trainer.validation.full_pass()


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Trainer:
    trainer = make_trainer(tmp_path_factory.mktemp("clean"), **LONG)
    fit(trainer)
    return trainer


def test_nan_inf_and_spikes_in_a_run_leave_it_within_one_percent_of_the_clean_one(tmp_path, clean) -> None:
    faults = {30: "nan", 41: "inf", 60: "chance", 61: "nan", 90: "chance", 91: "chance", 120: "chance"}
    trainer = spoil(make_trainer(tmp_path, **LONG, spike_rollback=6.0), faults)
    heard = hear(trainer, Heard())
    result = trainer.fit()
    assert result.steps == 150
    for batch, fault in faults.items():
        (note,) = [note for note in heard.notes if note.startswith(f"step {batch + 1}: ")]
        assert f"batch {batch} " in note
        assert ("not finite" in note) == (fault != "chance")
        row = next(row for row in trainer.history if row["step"] == batch + 1)
        assert (row["train_loss"] is None) == (fault != "chance")
    assert len(heard.notes) == len(faults)
    assert all(value is None or math.isfinite(value) for row in trainer.history for value in row.values())
    json.dumps(trainer.history, allow_nan=False)
    assert final_loss(trainer) == pytest.approx(final_loss(clean), rel=0.01)


def test_a_spike_is_only_reported_unless_the_user_wants_it_undone(tmp_path, clean) -> None:
    trainer = spoil(make_trainer(tmp_path, **LONG), {60: "chance", 61: "chance"})
    _, heard = fit(trainer)
    (note,) = heard.notes
    assert note.startswith("step 61: the loss of batch 60 is a spike: ")
    assert "standard deviations above the" in note
    assert without_speed(trainer.history)[:60] == without_speed(clean.history)[:60]
    assert trainer.monitor.state.left_out == []


def test_a_healthy_run_hears_nothing_of_spikes_and_the_setting_does_not_change_its_bits(tmp_path, clean) -> None:
    watched = make_trainer(tmp_path, **LONG, spike_rollback=6.0)
    _, heard = fit(watched)
    assert heard.notes == []
    assert_same_bits(watched, clean)


class Breaker(Heard):
    """Spoils the weights once after a step, as an update that went wrong does."""

    def __init__(self, step: int, factor: float) -> None:
        super().__init__()
        self.step, self.factor = step, factor

    def on_row(self, row) -> None:
        super().on_row(row)
        if row["step"] == self.step:
            self.step = -1
            with torch.no_grad():
                self.trainer.model.ln_f.weight.mul_(self.factor)

    def on_start(self, trainer) -> None:
        self.trainer = trainer


def test_weights_that_are_no_numbers_any_more_are_taken_back_from_the_last_checkpoint(tmp_path, clean) -> None:
    trainer = make_trainer(tmp_path, **LONG)
    heard = hear(trainer, Breaker(55, math.nan))
    trainer.fit()
    assert heard.notes == [
        "step 56: the loss or its gradient is not finite; batch 55 is skipped, weights unchanged",
        "step 56: rolled back to the checkpoint at step 40; batch 54 is skipped from now on",
        "step 55: batch 54 is skipped after the rollback",
    ]
    assert [row["step"] for row in trainer.history] == list(range(1, 151))
    assert final_loss(trainer) == pytest.approx(final_loss(clean), rel=0.01)


def test_weights_that_went_bad_before_the_first_checkpoint_are_taken_back_to_the_start(tmp_path) -> None:
    trainer = make_trainer(tmp_path, **LONG)
    heard = hear(trainer, Breaker(3, math.nan))
    trainer.fit()
    assert "step 4: rolled back to the checkpoint at step 0; batch 2 is skipped from now on" in heard.notes


def test_a_checkpoint_is_never_made_of_weights_that_are_no_numbers(tmp_path) -> None:
    trainer = make_trainer(tmp_path, **LONG)
    heard = hear(trainer, Breaker(60, math.nan))
    trainer.fit()
    assert "step 60: the weights are not finite, so no checkpoint is saved" in heard.notes
    assert "step 61: rolled back to the checkpoint at step 40; batch 59 is skipped from now on" in heard.notes


def test_three_spikes_in_a_row_are_bad_weights_and_the_run_goes_back(tmp_path, clean) -> None:
    trainer = make_trainer(tmp_path, **LONG, spike_rollback=6.0)
    heard = hear(trainer, Breaker(59, 300.0))
    trainer.fit()
    assert "step 62: rolled back to the checkpoint at step 40; batches 58 to 61 are skipped from now on" in heard.notes
    assert [row["step"] for row in trainer.history] == list(range(1, 151))
    assert final_loss(trainer) == pytest.approx(final_loss(clean), rel=0.01)


def test_a_run_that_left_batches_out_resumes_to_the_same_bits(tmp_path) -> None:
    faults = {30: "chance", 45: "nan", 66: "chance", 67: "chance", 68: "chance"}
    whole = spoil(make_trainer(tmp_path / "whole", **LONG, spike_rollback=6.0), faults)
    fit(whole)
    assert whole.monitor.state.rollbacks == 1
    for cut in (31, 67, 75):
        trainer = spoil(make_trainer(tmp_path / "cut", **LONG, spike_rollback=6.0), faults)
        trainer.resume()
        trainer.interrupted = lambda trainer=trainer, cut=cut: trainer.step >= cut
        fit(trainer)
    last = spoil(make_trainer(tmp_path / "cut", **LONG, spike_rollback=6.0), faults)
    assert last.resume()
    fit(last)
    assert_same_bits(last, whole)
    assert last.monitor.state == whole.monitor.state


def test_weights_that_break_again_and_again_end_the_run_with_a_reason(tmp_path) -> None:
    trainer = make_trainer(tmp_path, **LONG)

    class Always(Breaker):
        def on_row(self, row) -> None:
            self.step = 25 if row["step"] >= 25 else self.step
            super().on_row({**row, "step": 25} if row["step"] >= 25 else row)

    hear(trainer, Always(25, math.nan))
    with pytest.raises(UserError, match="not finite in 10 steps in a row"):
        trainer.fit()


def test_a_lasting_change_of_level_is_one_spike_and_then_the_new_normal() -> None:
    monitor = LossMonitor(None)
    losses = [2.0 + 0.05 * (number % 5) for number in range(60)] + [4.0 + 0.05 * (number % 5) for number in range(60)]
    notes = [note for number, loss in enumerate(losses) if (note := monitor.decide(number, loss, 1.0).note)]
    assert len(notes) == 1


def test_a_gradient_whose_square_is_no_number_is_left_out_too() -> None:
    decision = LossMonitor(None).decide(7, 2.0, 1e19)
    assert (decision.apply_update, decision.finite) == (False, False)
    assert "batch 7 is skipped" in decision.note
