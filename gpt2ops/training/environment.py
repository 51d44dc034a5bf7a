"""The machine and the software that a model was trained with, for whoever reads its report later."""

import os
import platform
from pathlib import Path

import torch


def environment(device: torch.device, threads: int) -> dict[str, str | int]:
    """Python, PyTorch, system, processor, and what `device` is; no name of the machine or its user."""
    facts: dict[str, str | int] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpus": os.cpu_count() or 1,
        "threads": threads,
        "device": device_name(device),
    }
    return facts


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def cpu_name() -> str:
    """What the processor calls itself, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "unknown"
