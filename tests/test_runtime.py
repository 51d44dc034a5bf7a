"""Device and precision are chosen for a reason, and what is not there is said."""

import pytest
import torch

from gpt2core import runtime
from gpt2core.errors import UserError


def test_a_gpu_that_is_not_there_is_one_clear_line(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="CPU-only build; see 'CUDA' in the README"):
        runtime.pick_runtime("cuda", "auto")


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"run\.precision fp16 needs a GPU"):
        runtime.pick_runtime("cpu", "fp16")


@pytest.mark.parametrize(
    ("gain", "said", "precision"), [(0.0213, "0.02", "fp32"), (1.1, "1.1", "fp32"), (2.0, "2.0", "bf16")]
)
def test_bf16_is_taken_on_a_cpu_only_where_the_probe_shows_that_it_pays(monkeypatch, gain, said, precision) -> None:
    monkeypatch.setattr(runtime, "bf16_gain", lambda: gain)
    chosen = runtime.pick_runtime("cpu", "auto")
    assert chosen.precision == precision
    assert f" {said} times" in chosen.reason


def test_the_probe_measures_this_cpu() -> None:
    assert 0.001 < runtime.bf16_gain(size=128, seconds=0.02) < 1000


def test_autocast_computes_in_the_chosen_precision() -> None:
    a = torch.randn(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with runtime.Runtime(torch.device("cpu"), precision, "").autocast():
            assert (a @ a).dtype == dtype


def test_threads_are_as_asked_or_one_a_physical_core() -> None:
    before = torch.get_num_threads()
    try:
        assert runtime.set_threads(1) == torch.get_num_threads() == 1
        assert runtime.set_threads(None) >= 1
    finally:
        torch.set_num_threads(before)
