"""A whole update as one CUDA graph: forward, backward, clipping and AdamW are launched at once.

A GPU computes a step of a hundred tokens in less time than Python takes to launch its kernels one by one. A graph reads
and writes fixed addresses: tokens, learning rate and the skip flag are tensors, and one copy a step returns loss and
norm. See PyTorch's notes on CUDA graphs (whole-network capture).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.kernels.graphed_call import GraphedCall
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.training.config import TrainerConfig
from gpt2core.training.spikes import GRADIENT_LIMIT, LossMonitor
from gpt2core.training.step import MicroStep, StepResult, TrainStep

# With more tokens a step the GPU computes for longer than the launches take.
LARGEST_STEP = 65_536  # tokens
# A first compilation takes about 15 s and saves a third of the time; an H200 computes this much in a minute.
LEAST_COMPILED = 1.5e16  # floating-point operations
LEAST_STEPS_COMPILED = 500  # without a graph, where Python launches compiled blocks in half the time
WARM_UPS = 3  # libraries allocate their workspaces in the first passes, outside the graph's memory


def make_train_step(
    model: GPT, config: TrainerConfig, run: Runtime, total_steps: int, tokens: int, masked: bool = False
) -> TrainStep:
    """The fastest kind for steps of `tokens` tokens, `masked` if some of them have no loss.

    Raises UserError if cuda_graph is on and impossible.
    """
    obstacle = graph_obstacle(config, run, masked)
    if config.cuda_graph == "on" and obstacle:
        raise UserError(key="cuda_graph", value="on", rule=f"is impossible: {obstacle}", remedy="set it to auto")
    wanted = config.cuda_graph == "on" or (config.cuda_graph == "auto" and tokens <= LARGEST_STEP)
    kind = GraphedStep if wanted and not obstacle else TrainStep
    flops = 6.0 * model.num_parameters() * tokens * total_steps
    long_enough = flops >= LEAST_COMPILED or (kind is TrainStep and total_steps >= LEAST_STEPS_COMPILED)
    compile_is_faster = run.device.type == "cuda" and long_enough
    compiled = config.compile == "on" or (config.compile == "auto" and compile_is_faster)
    return kind(model, config, run, total_steps, compiled=compiled)


def graph_obstacle(config: TrainerConfig, run: Runtime, masked: bool = False) -> str | None:
    """The reason why this run's step cannot be a CUDA graph; None if it can."""
    if run.device.type != "cuda":
        return f"the device is {run.device.type}"
    if masked:
        return "each batch of examples has another number of trained tokens"
    if run.precision == "fp16":
        return "fp16 adapts its loss scale on the host"
    if config.optimizer != "adamw":
        return f"the optimizer is {config.optimizer}, not adamw"
    if config.spike_rollback is not None:
        return "spike_rollback decides on the host"
    if dist.is_initialized():
        return "several processes train together"
    return None


class GraphedStep(TrainStep):
    """`TrainStep` for one device and AdamW; on a CPU, in tests, the same code runs without a graph."""

    def prepare(self) -> None:
        super().prepare()
        device = self.run.device
        # The fused kernel reads the rate from a tensor: float on a GPU, double on a CPU.
        kind = torch.float32 if device.type == "cuda" else torch.float64
        (self.optimizer,) = self.optimizers
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), dtype=kind, device=device)
            group["capturable"] = True
        self._call = GraphedCall[None](device)
        self._inputs: list[Tensor] | None = None  # token ids and targets
        self._steps: list[MicroStep] = []
        self._skipped = torch.zeros((), dtype=torch.bool, device=device)
        self._numbers = torch.zeros(2, device=device)  # loss and norm

    def update(
        self, step: int, batch: tuple[np.ndarray, ...], monitor: LossMonitor, interrupted: Callable[[], bool]
    ) -> StepResult | None:
        if interrupted():
            return None
        if self._inputs is None:
            self._inputs = [torch.from_numpy(array).to(self.run.device) for array in batch]
            self._steps = self._micro_steps(batch[1])
        note = None
        if self._call.can_capture and (reason := self._call.capture(self._compute, self._warm_up)):
            note = f"CUDA graph capture failed, kernels are launched one by one: {reason}"
        self._begin(step)
        for held, array in zip(self._inputs, batch, strict=True):
            held.copy_(torch.from_numpy(array))
        self._skipped.fill_(monitor.is_excluded(step))
        self._call(self._compute)
        train_loss, grad_norm = self._numbers.tolist()
        decision = monitor.decide(step, train_loss, grad_norm)
        return StepResult(train_loss, grad_norm, replace(decision, note=decision.note or note))

    def __str__(self) -> str:
        return f"{super().__str__()}, a whole update in one CUDA graph"

    def restore(self, saved: GPT, optimizer: dict[str, Tensor], scaler: dict[str, float]) -> None:
        super().restore(saved, optimizer, scaler)
        self._call.forget()  # its graph holds the addresses of the replaced moments

    def _compute(self) -> None:
        """Forward, backward and update without synchronising with the host."""
        assert self._inputs is not None
        self._zero_grad()
        loss = self._add_gradients(self._inputs, self._steps, interrupted=lambda: False)
        assert loss is not None
        norm = self._clip()
        applied = loss.isfinite() & (norm < GRADIENT_LIMIT) & ~self._skipped
        self.optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined]  # then fused AdamW changes nothing
        self.optimizer.step()
        self._numbers[0].copy_(loss)
        self._numbers[1].copy_(norm)

    def _warm_up(self) -> None:
        self._skipped.fill_(True)
        for _ in range(WARM_UPS):
            self._compute()
