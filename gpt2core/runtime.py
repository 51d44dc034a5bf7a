"""Device, precision, threads, determinism and process group of a run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from gpt2core.errors import UserError
from gpt2core.kernels.cores import usable_cores

PRECISION_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Device and precision of a run."""

    device: torch.device
    precision: str  # fp32 | bf16 | fp16
    reason: str  # why this precision

    def autocast(self, keep_casts: bool = True) -> AbstractContextManager[object]:
        """`keep_casts`: the weights in this precision are kept until the context ends, not made anew at each use."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISION_DTYPES[self.precision], cache_enabled=keep_casts)


def pick_runtime(device: str, precision: str) -> Runtime:
    """Resolve `auto | cpu | cuda | mps` and `auto | fp32 | bf16 | fp16`. Raises UserError for an unavailable one."""
    chosen = pick_device(device)
    if precision != "auto":
        if precision == "fp16" and chosen.type == "cpu":
            raise UserError(
                key="precision", value=precision, rule="needs a GPU", remedy="on a CPU use fp32, bf16 or auto"
            )
        return Runtime(chosen, precision, "as set")
    if chosen.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        capability = ".".join(str(number) for number in torch.cuda.get_device_capability(chosen))
        reason = f"a GPU of compute capability {capability} has {'' if supported else 'no '}bf16"
        return Runtime(chosen, "bf16" if supported else "fp16", reason)
    if chosen.type == "cpu":
        return Runtime(chosen, *cpu_precision(cpu_capabilities()))
    return Runtime(chosen, "fp32", "bf16 has not been measured on this device")


def pick_device(choice: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if choice == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    if not available[choice]:
        cpu_build = choice == "cuda" and torch.version.cuda is None
        hint = "this PyTorch is a CPU-only build; see 'CUDA' in the README" if cpu_build else "no such device was found"
        raise UserError(key="device", value=choice, rule=": {hint}", remedy="set it to auto", hint=hint)
    return torch.device(choice)


def cpu_capabilities() -> dict[str, Any]:
    """This CPU's instruction sets as `torch.cpu.get_capabilities` names them; AMX only where the system permits it."""
    found = dict(torch.cpu.get_capabilities())
    found["amx_bf16"] = bool(found.get("amx_bf16")) and bool(torch.cpu._init_amx())
    return found


def cpu_precision(capabilities: Mapping[str, Any]) -> tuple[str, str]:
    """The precision that is fast on a CPU with these `cpu_capabilities`, and why.

    Precision is part of a run's identity, so it is looked up, never timed: a busy machine gives the same result.
    """
    if capabilities.get("amx_bf16"):
        return "bf16", "the CPU has AMX-BF16"
    if capabilities.get("avx512_bf16"):
        # Zen 4 multiplies bf16 four times as fast as fp32; a Xeon limited to AVX512-BF16 reaches 0.5 to 0.8 times fp32.
        if str(capabilities.get("cpu_name", "")).startswith("AMD"):
            return "bf16", "an AMD CPU with AVX512-BF16"
        return "fp32", "the CPU has AVX512-BF16 without AMX, and is faster in fp32"
    if capabilities.get("bf16"):
        return "fp32", "bf16 has not been measured on ARM; set precision to try it"
    return "fp32", "the CPU has no fast bf16 (AMX-BF16, or AVX512-BF16 of AMD)"


def set_threads(threads: int | None) -> int:
    """Use `threads` CPU threads (None: one per physical core); returns the number."""
    if threads is None:
        threads = _physical_cores()
    torch.set_num_threads(threads)
    return threads


def _physical_cores() -> int:
    """Those that this process may use; without psutil PyTorch's own number of threads."""
    try:
        import psutil
    except ModuleNotFoundError:
        return min(torch.get_num_threads(), usable_cores())
    return min(psutil.cpu_count(logical=False) or 1, usable_cores())


def set_determinism(deterministic: bool) -> None:
    """Same bits on every run; on a GPU cuBLAS also asks for CUBLAS_WORKSPACE_CONFIG in the environment."""
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def join_process_group(device: torch.device) -> None:
    """Join the group that `torchrun` describes in the environment, unless this process is in it already."""
    if dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank())
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
