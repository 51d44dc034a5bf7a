"""Device and precision are chosen for a reason, and what is not there is said."""

import platform
import time
from pathlib import Path

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
    with pytest.raises(UserError, match=r"precision \('fp16'\) needs a GPU"):
        runtime.pick_runtime("cpu", "fp16")


@pytest.mark.parametrize(
    ("cpu", "flags", "precision", "said"),
    [
        ("AMD EPYC", "avx2", "fp32", "no fast bf16"),  # Zen 3
        ("AMD EPYC", "avx2 avx512_bf16", "bf16", "AVX512-BF16"),  # Zen 4
        ("Intel Xeon", "avx2 avx512_vnni", "fp32", "no fast bf16"),  # Ice Lake
        ("Intel Xeon", "avx2 avx512_bf16", "fp32", "without AMX"),  # Sapphire Rapids, its AMX kept back
        ("Intel Xeon", "avx2 avx512_bf16 amx_bf16", "bf16", "AMX-BF16"),
        ("Intel Core i7-1260P", "avx2 avx_vnni", "fp32", "no fast bf16"),
        (None, "neon bf16 sve_bf16", "fp32", "ARM"),  # Neoverse V1, Apple M2
        (None, "neon", "fp32", "no fast bf16"),
        (None, "", "fp32", "no fast bf16"),
    ],
)
def test_precision_is_looked_up_by_what_the_cpu_can_do(cpu, flags, precision, said) -> None:
    capabilities = dict.fromkeys(flags.split(), True) | ({"cpu_name": cpu} if cpu else {})
    chosen, reason = runtime.cpu_precision(capabilities)
    assert chosen == precision
    assert said in reason


def test_the_precision_of_this_machine_is_found_without_a_clock_or_a_product(monkeypatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("precision must not hang on a measurement")

    with monkeypatch.context() as patch:
        for clock in ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "time", "process_time"):
            patch.setattr(time, clock, forbidden)
        for product in ("mm", "matmul", "bmm"):
            patch.setattr(torch, product, forbidden)
        answers = {(found.precision, found.reason) for found in (runtime.pick_runtime("cpu", "auto") for _ in range(5))}
    assert len(answers) == 1


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what a CPU can do there")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
def test_the_precision_of_this_machine_follows_the_flags_that_the_system_shows() -> None:
    lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {key.strip(): set(value.split()) for key, value in lines.items()}
    fast = "amx_bf16" in facts["flags"] or ("avx512_bf16" in facts["flags"] and facts["vendor_id"] == {"AuthenticAMD"})
    assert runtime.pick_runtime("cpu", "auto").precision == ("bf16" if fast else "fp32")


def test_amx_that_the_system_keeps_back_does_not_count(monkeypatch) -> None:
    xeon = {"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: xeon)
    for lent, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_init_amx", lambda lent=lent: lent)
        assert runtime.pick_runtime("cpu", "auto").precision == precision


@pytest.mark.parametrize(
    ("capability", "supported", "precision", "said"),
    [((7, 5), False, "fp16", "7.5 has no bf16"), ((8, 0), True, "bf16", "8.0 has bf16")],
)
def test_a_gpu_goes_by_its_compute_capability(monkeypatch, capability, supported, precision, said) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen = runtime.pick_runtime("cuda", "auto")
    assert chosen.precision == precision
    assert said in chosen.reason


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
