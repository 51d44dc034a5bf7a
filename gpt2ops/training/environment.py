"""The machine and software that a model was trained with, for the report."""

import platform
from pathlib import Path

import torch

from gpt2core.kernels.cores import usable_cores


def environment(device: torch.device, threads: int) -> dict[str, str | int]:
    """Python, PyTorch, system, processor and device; no host or user name."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpus": usable_cores(),
        "threads": threads,
        "device": device_name(device),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def cpu_name() -> str:
    """The processor's model name, or "unknown"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "unknown"
