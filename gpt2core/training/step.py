"""One optimizer update: the gradient of a batch in micro-steps, its norm, and the update itself, on every device."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gpt2core import runtime
from gpt2core.kernels.switch import own_kernels_are_faster
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.training import optimizers as optim
from gpt2core.training.config import TrainerConfig
from gpt2core.training.muon import muon_for
from gpt2core.training.spikes import LossMonitor, UpdateDecision


class StepResult(NamedTuple):
    """Mean loss in nats, gradient norm before clipping, and whether the update was applied."""

    train_loss: float
    grad_norm: float
    decision: UpdateDecision


class MicroStep(NamedTuple):
    """Rows `start` to `stop` of a rank's part of a batch."""

    start: int
    stop: int
    share: float  # of the batch's trained tokens, times the number of ranks
    masked: bool  # whether a target has no loss


class TrainStep:
    """Optimizers, schedule and gradient scaler of a run; an update is a function of the step and its batch."""

    def __init__(
        self, model: GPT, config: TrainerConfig, run: Runtime, total_steps: int, compiled: bool = False
    ) -> None:
        self.model, self.config, self.run, self.total_steps, self.compiled = model, config, run, total_steps, compiled
        model.to(run.device)
        model.gradient_checkpointing, model.compiled = config.gradient_checkpointing, compiled
        model.use_own_kernels(config.own_kernels)
        self.optimizers = optim.build_optimizers(
            model,
            name=config.optimizer,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            muon=muon_for(run),
        )
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.precision == "fp16")
        self._forward: torch.nn.Module = model

    def prepare(self) -> None:
        """Wrap the model for data-parallel training, if several processes train."""
        self.model.train()
        module: torch.nn.Module = self.model
        if dist.is_initialized():
            module = DistributedDataParallel(module)
        self._forward = module

    def update(
        self, step: int, batch: tuple[np.ndarray, ...], monitor: LossMonitor, interrupted: Callable[[], bool]
    ) -> StepResult | None:
        """One update with batch `step`, unless `monitor` skips it; None if interrupted.

        A batch is token ids and targets, int64 (B, T), and segments where rows are packed. A target is negative where
        a token has no loss.
        """
        self._begin(step)
        tensors = [self._share(array) for array in batch]
        loss = self._add_gradients(tensors, self._micro_steps(batch[1]), interrupted)
        if loss is None:
            self._zero_grad()
            return None
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= runtime.world_size()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        train_loss, grad_norm = torch.stack([loss, self._clip()]).tolist()  # a GPU is waited for once
        decision = monitor.decide(step, train_loss, grad_norm)
        self._apply(decision.apply_update)
        return StepResult(train_loss, grad_norm, decision)

    def _apply(self, apply_update: bool) -> None:
        """Update the weights if `apply_update`; clear the gradients."""
        if apply_update:
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        self.scaler.update()
        self._zero_grad()

    def __str__(self) -> str:
        """Which kernels compute a step, for the log."""
        own = self.config.own_kernels and own_kernels_are_faster(self.run.device) and not self.compiled
        kernels = "own CPU kernels for head, attention and dropout" if own else "torch's kernels"
        return f"{kernels}, {'compiled' if self.compiled else 'not compiled'}"

    @property
    def scale_is_settling(self) -> bool:
        """Whether overflows are expected: fp16's loss scale starts high and is halved at each one, down to 1."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    @property
    def learning_rate(self) -> float:
        """Of the last update."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def weights_are_finite(self) -> bool:
        return math.isfinite(torch.nn.utils.get_total_norm(self.model.parameters()).item())

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return optim.optimizer_tensors(self.optimizers, self.model)

    def restore(self, saved: GPT, optimizer: dict[str, Tensor], scaler: dict[str, float]) -> None:
        """Load weights, moments and loss scale of a checkpoint."""
        self.model.load_state_dict(saved.state_dict())
        optim.load_optimizer_tensors(self.optimizers, self.model, optimizer)
        self.scaler.load_state_dict(scaler)

    def _begin(self, step: int) -> None:
        """Set learning rate and seed for `step`."""
        factor = optim.learning_rate_factor(
            step,
            schedule=self.config.schedule,
            total_steps=self.total_steps,
            warmup_steps=self.config.warmup_steps,
            floor=min(1.0, self.config.min_learning_rate / self.config.learning_rate),
            decay_fraction=self.config.decay_fraction,
        )
        optim.set_learning_rate(self.optimizers, factor)
        # Dropout is a function of the step, so a resumed run draws the same masks as an uninterrupted one.
        torch.manual_seed(step_seed(self.config.seed, step, runtime.rank()))

    def _micro_steps(self, targets: np.ndarray) -> list[MicroStep]:
        """How this rank computes a batch of targets, int64 (B, T): all trained tokens have the same weight."""
        trained = (targets >= 0).sum(axis=1)
        total, ranks = max(1, int(trained.sum())), runtime.world_size()
        own = trained[runtime.rank() :: ranks]
        micro = self.config.micro_batch_size or len(own)
        steps = []
        for start in range(0, len(own), micro):
            counts = own[start : start + micro]
            count = int(counts.sum())
            # The gradients of the ranks are averaged, not added up.
            steps.append(
                MicroStep(start, start + len(counts), count * ranks / total, count < counts.size * targets.shape[1])
            )
        return steps

    def _add_gradients(
        self, batch: Sequence[Tensor], steps: list[MicroStep], interrupted: Callable[[], bool]
    ) -> Tensor | None:
        """Add up the gradients of a batch, as `update` has it, in micro-steps; returns the mean loss in nats, a scalar.

        The mean over the ranks of what they return is that of all trained tokens of the batch. None if a rank was
        interrupted, which is checked between micro-steps.
        """
        total, rows = torch.zeros((), device=self.run.device), len(batch[0])
        for start, stop, share, masked in steps:
            if _any_rank(interrupted(), self.run.device):
                return None
            # Casts kept for the backward pass are memory that checkpointing is there to save.
            autocast = self.run.autocast(keep_casts=not self.config.gradient_checkpointing)
            token_ids, targets, *packed = (tensor[start:stop] for tensor in batch)
            with self._sync(stop >= rows), autocast:
                loss = self._forward(token_ids, targets, masked=masked, segments=packed[0] if packed else None)
            self.scaler.scale(loss * share).backward()
            total += loss.detach() * share
        return total

    def _clip(self) -> Tensor:
        """Clip the gradient's norm; returns the norm before, a scalar on the device."""
        limit = self.config.max_grad_norm if self.config.max_grad_norm is not None else math.inf
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    def _share(self, array: np.ndarray) -> Tensor:
        """This device's rows of a batch, (batch_size / world_size, T)."""
        rows = slice(runtime.rank(), None, runtime.world_size())
        return torch.from_numpy(array[rows]).to(self.run.device, non_blocking=True)

    def _sync(self, last: bool) -> AbstractContextManager[None]:
        """Devices all-reduce their gradients only in a step's last micro-step."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of one step on one rank, 64 bits: the same on every machine and in every version of Python."""
    return int(np.random.SeedSequence(seed, spawn_key=(step, rank)).generate_state(1, np.uint64)[0])


def _any_rank(interrupted: bool, device: torch.device) -> bool:
    if not dist.is_initialized():
        return interrupted
    flag = torch.tensor(float(interrupted), device=device)
    dist.all_reduce(flag)
    return bool(flag.item())
