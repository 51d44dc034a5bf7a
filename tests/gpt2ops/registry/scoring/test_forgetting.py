"""What fine-tuning made a model forget, against a loss computed by plain torch."""

from pathlib import Path

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.data.text_tokens import TextTokens
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2ops.params.schema import check_control, parse_params
from gpt2ops.params.sections import Gate
from gpt2ops.registry.gate import judge
from gpt2ops.registry.scoring.coverage import forgetting_text
from gpt2ops.registry.scoring.forgetting import control_file, forgetting

CPU = torch.device("cpu")


def params_with(control: str | None, init: str = "gpt2"):
    return parse_params({"model": {"init": init}, "evaluate": {"control": control}})


def model_of(seed: int) -> GPT:
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=50257, n_layer=1, n_head=2, n_embd=16, block_size=64)).eval()


def test_the_losses_are_those_of_the_text_before_and_after(tmp_path: Path) -> None:
    file = tmp_path / "control.txt"
    file.write_text("Bread rises because yeast eats the sugar in the dough.")
    before, after = model_of(1), model_of(2)
    found = forgetting(file, params_with(str(file)), before, after, CPU)
    ids = torch.tensor([Tokenizer().encode(file.read_text())])
    expected = [
        torch.nn.functional.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:]).item() for model in (before, after)
    ]
    assert [found["loss_before"], found["loss_after"]] == pytest.approx(expected, abs=1e-4)
    assert found["loss_increase"] == pytest.approx(expected[1] - expected[0], abs=1e-4)
    assert found["tokens"] == ids.shape[1] - 1
    assert f"{found['loss_increase']:+.3f} nats per token" in forgetting_text(found)


def test_the_bundled_text_has_enough_documents_for_an_interval_that_holds_the_change() -> None:
    file = control_file(params_with("bundled"))
    assert file is not None
    assert len(TextTokens(file).document_starts) >= 20
    found = forgetting(file, params_with("bundled"), model_of(1), model_of(2), CPU)
    low, high = found["interval"]
    assert low < found["loss_increase"] < high
    unchanged = forgetting(file, params_with("bundled"), model_of(1), model_of(1), CPU)
    assert (unchanged["loss_increase"], unchanged["interval"]) == (0.0, [0.0, 0.0])


def test_new_weights_have_nothing_to_forget_and_null_is_off() -> None:
    assert control_file(params_with("bundled", "scratch")) is None
    assert control_file(params_with(None)) is None


def test_a_control_text_that_cannot_be_read_is_named_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.control .*nowhere\.txt.* is no file; name a text, bundled or null"):
        check_control(params_with("nowhere.txt"))
    check_control(params_with("nowhere.txt", "scratch"))
    binary = tmp_path / "a.txt"
    binary.write_bytes(b"\0\1")
    with pytest.raises(UserError, match=r"evaluate\.control: .*a\.txt.*NUL"):
        control_file(params_with(str(binary)))


@pytest.mark.parametrize(("limit", "passes"), [(None, True), (0.5, True), (0.1, False)])
def test_the_gate_refuses_a_model_that_forgot_more_than_it_may(limit: float | None, passes: bool) -> None:
    evaluation = {"held_out": None, "forgetting": {"loss_increase": 0.25}}
    decision = judge(evaluation, {}, None, Gate(max_forgetting=limit))
    assert decision.passed == passes
    assert any("rose by 0.250 nats per token" in reason for reason in decision.reasons) != passes
    assert judge({"held_out": None, "forgetting": None}, {}, None, Gate(max_forgetting=0.0)).passed
