"""Where and how numbers are computed: device, precision, threads, seeds, process group."""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import psutil
import torch
import torch.distributed as dist

from gpt2core.errors import UserError

PRECISION_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# bf16 also costs casts around each matmul: a smaller gain than this is lost to them.
BF16_MIN_GAIN = 1.3


@dataclass(frozen=True)
class Runtime:
    """What a run computes with, and why."""

    device: torch.device
    precision: str  # fp32 | bf16 | fp16
    reason: str  # why this precision

    def autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISION_DTYPES[self.precision])


def pick_runtime(device: str, precision: str) -> Runtime:
    """Resolve `auto | cpu | cuda | mps` and `auto | fp32 | bf16 | fp16`. Raises UserError where one is not there."""
    chosen = pick_device(device)
    if precision != "auto":
        if precision == "fp16" and chosen.type == "cpu":
            raise UserError("run.precision fp16 needs a GPU; on a CPU use fp32, bf16 or auto.")
        return Runtime(chosen, precision, "as set in run.precision")
    if chosen.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return Runtime(chosen, "bf16" if supported else "fp16", "the GPU's fast format")
    if chosen.type == "cpu":
        gain = bf16_gain()
        verb = "pays" if gain >= BF16_MIN_GAIN else "does not pay"
        return Runtime(
            chosen,
            "bf16" if gain >= BF16_MIN_GAIN else "fp32",
            f"bf16 {verb} on this CPU: a matmul runs at {gain:{'.1f' if gain >= 0.1 else '.1g'}} times fp32's speed",
        )
    return Runtime(chosen, "fp32", "bf16 is not tried on this device")


def pick_device(choice: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if choice == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available[choice]:
        cpu_build = choice == "cuda" and torch.version.cuda is None
        hint = "this PyTorch is a CPU-only build; see 'CUDA' in the README" if cpu_build else "no such device was found"
        raise UserError(f"run.device is {choice!r}, but {hint}; or set run.device to auto.")
    return torch.device(choice)


def bf16_gain(size: int = 512, seconds: float = 0.15) -> float:
    """Speed of a bf16 matmul over that of an fp32 one on this CPU, by a probe of about 2 * `seconds`."""
    a = torch.randn(size, size)
    return _matmuls_per_second(a.bfloat16(), seconds) / _matmuls_per_second(a, seconds)


def _matmuls_per_second(a: torch.Tensor, seconds: float) -> float:
    b = a.clone()
    started_at = time.perf_counter()
    torch.mm(a, b)  # warms up, and where bf16 is emulated this one alone outlasts the probe
    if time.perf_counter() - started_at > seconds:
        return 1 / (time.perf_counter() - started_at)
    count, started_at = 0, time.perf_counter()
    while time.perf_counter() - started_at < seconds:
        torch.mm(a, b)
        count += 1
    return count / (time.perf_counter() - started_at)


def set_threads(threads: int | None) -> int:
    """Use `threads` CPU threads, or one a physical core; returns how many."""
    if threads is None:
        physical = psutil.cpu_count(logical=False) or 1
        try:
            allowed = len(psutil.Process().cpu_affinity())
        except AttributeError:  # macOS has no affinity
            allowed = physical
        threads = min(physical, allowed)
    torch.set_num_threads(threads)
    return threads


def set_determinism(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def join_process_group(device: torch.device) -> None:
    """Join the group that `torchrun` describes in the environment."""
    if device.type == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
