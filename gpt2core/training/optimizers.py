"""Parameter groups, optimizers and learning-rate schedules."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gpt2core.model import GPT

# torch's OneCycleLR: it starts at the peak divided by this (Smith and Topin 2017).
ONECYCLE_DIVISOR = 25.0
ONECYCLE_WARMUP = 0.3
DEFAULT_WARMUP = 0.02


def build_optimizers(
    model: GPT,
    *,
    name: str,
    learning_rate: float,
    muon_learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    muon: type[torch.optim.Muon] = torch.optim.Muon,
) -> list[torch.optim.Optimizer]:
    """AdamW or Adafactor over all, or Muon over the blocks' matrices and AdamW over the rest. Only matrices decay.

    Adafactor (arXiv 1804.04235) stores a row and a column in place of a matrix's second moments, so training takes half
    of AdamW's memory; its learning rate is relative to the size of each matrix. `muon` is the kind of Muon
    that is fast on the model's device.
    """
    named = dict(model.named_parameters())
    matrices = {key for key, parameter in named.items() if parameter.ndim >= 2}
    blocks = {key for key in matrices if key.startswith("h.")} if name == "muon" else set()
    groups = [
        {"params": [p for key, p in named.items() if key in matrices - blocks], "weight_decay": weight_decay},
        {"params": [p for key, p in named.items() if key not in matrices], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        # One matrix at a time: foreach would allocate another copy of the gradients.
        torch.optim.Adafactor(groups, lr=learning_rate, foreach=False)
        if name == "adafactor"
        else torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)
    ]
    if blocks:
        optimizers.append(
            muon([named[key] for key in named if key in blocks], lr=muon_learning_rate, weight_decay=weight_decay)
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_learning_rate"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group to `factor` times its peak; a rate held in a tensor is changed in place."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["peak_learning_rate"] * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def learning_rate_factor(
    step: int,
    *,
    schedule: str,
    total_steps: int,
    warmup_steps: int | None,
    floor: float,
    decay_fraction: float,
) -> float:
    """Share of the peak learning rate at `step` (0 is the first update) of `total_steps`.

    `floor` is the share at the end. `warmup_steps` None: 30 % of the run for onecycle, 2 % for the others.
    onecycle is torch's OneCycleLR with cosine annealing; wsd is warm-up, stable, linear decay (arXiv 2404.06395).
    """
    last = max(1, total_steps - 1)
    if warmup_steps is None:
        warmup_steps = int((ONECYCLE_WARMUP if schedule == "onecycle" else DEFAULT_WARMUP) * total_steps)
    step = min(step, last)
    if schedule == "onecycle":
        # torch's peak is at index (share * total - 1): its first and last steps are the ends of the curve.
        peak = max(1, warmup_steps - 1)
        if step <= peak:
            return _cosine(1 / ONECYCLE_DIVISOR, 1.0, step / peak)
        return _cosine(1.0, floor, (step - peak) / max(1, last - peak))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, last - warmup_steps)
    match schedule:
        case "cosine":
            return _cosine(1.0, floor, progress)
        case "linear":
            return 1.0 + (floor - 1.0) * progress
        case "wsd":
            decay_steps = max(1, round(decay_fraction * total_steps))
            into_decay = max(0, step - (last - decay_steps)) / decay_steps
            return 1.0 + (floor - 1.0) * into_decay
        case "constant":
            return 1.0
    raise AssertionError(schedule)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def optimizer_tensors(optimizers: list[torch.optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """The optimizers' state as tensors by name, `PARAMETER/KEY`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                tensors[f"{names[parameter]}/{key}"] = tensor.detach().contiguous()
    return tensors


def load_optimizer_tensors(
    optimizers: list[torch.optim.Optimizer], model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` gave. Raises KeyError for an unknown parameter."""
    parameters = dict(model.named_parameters())
    owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    states: dict[Any, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter_name, key = name.rsplit("/", 1)
        parameter = parameters[parameter_name]
        # Fused AdamW needs its step count on the parameter's device.
        states.setdefault(parameter, {})[key] = tensor.to(parameter.device, copy=True)
    for optimizer in optimizers:
        optimizer.state.clear()
    for parameter, state in states.items():
        owners[parameter].state[parameter] = state
