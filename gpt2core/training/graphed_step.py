"""A whole update as one CUDA graph: forward, backward, clipping and AdamW are launched at once.

A GPU does a step of a hundred tokens in less time than Python takes to launch its kernels one by one. What a graph
reads and writes lies where it lay at its capture: tokens, learning rate and whether to take the update are tensors, and
one copy a step brings loss and norm back. See PyTorch's notes on CUDA graphs (whole-network capture).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.training.config import TrainerConfig
from gpt2core.training.spikes import GRADIENT_LIMIT, Health
from gpt2core.training.step import Taken, TrainStep

# With more tokens a step a GPU is busy for longer than the launches take.
LARGEST_STEP = 16_384  # tokens
# A first compilation takes about a minute. It saves a third of the time on a GPU, which does so much in three minutes.
LEAST_COMPILED = 5e16  # floating-point operations
WARM_UPS = 3  # libraries get their memory in the first ones, which a graph must not hold


def make_train_step(model: GPT, config: TrainerConfig, run: Runtime, total_steps: int, tokens: int) -> TrainStep:
    """What suits steps of `tokens` tokens on this device. Raises UserError for a graph that cannot be."""
    obstacle = why_no_graph(config, run)
    if config.cuda_graph == "on" and obstacle:
        raise UserError(f"train.cuda_graph is 'on', but {obstacle}; set it to auto.")
    wanted = config.cuda_graph == "on" or (config.cuda_graph == "auto" and tokens <= LARGEST_STEP)
    kind = GraphedStep if wanted and not obstacle else TrainStep
    flops = 6.0 * model.num_parameters() * tokens * total_steps
    pays = run.device.type == "cuda" and flops >= LEAST_COMPILED
    return kind(model, config, run, total_steps, compiled=config.compile == "on" or (config.compile == "auto" and pays))


def why_no_graph(config: TrainerConfig, run: Runtime) -> str | None:
    """What of a run a CUDA graph cannot do; None where it can."""
    if run.device.type != "cuda":
        return f"the device is {run.device.type}"
    if run.precision == "fp16":
        return "fp16 finds its scale on the host"
    if config.optimizer != "adamw":
        return f"the optimizer is {config.optimizer}, not adamw"
    if config.spike_rollback is not None:
        return "train.spike_rollback decides on the host"
    if dist.is_initialized():
        return "several processes train together"
    return None


class GraphedStep(TrainStep):
    """`TrainStep` for one device and AdamW; on a CPU, for tests, the same body runs without a graph."""

    def prepare(self) -> None:
        super().prepare()
        device = self.run.device
        # Where the fused kernel reads its rate: on a GPU it takes a float, on a CPU a double.
        kind = torch.float32 if device.type == "cuda" else torch.float64
        (self.optimizer,) = self.optimizers
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), dtype=kind, device=device)
            group["capturable"] = True
        self._graph: torch.cuda.CUDAGraph | None = None
        self._may_capture = device.type == "cuda"
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._passed_by = torch.zeros((), dtype=torch.bool, device=device)
        self._numbers = torch.zeros(2, device=device)  # loss and norm

    def take(
        self, step: int, batch: tuple[np.ndarray, np.ndarray], health: Health, interrupted: Callable[[], bool]
    ) -> Taken | None:
        if interrupted():
            return None
        if self._inputs is None:
            token_ids, targets = (torch.from_numpy(array).to(self.run.device) for array in batch)
            self._inputs = token_ids, targets
        note = None
        if self._graph is None and self._may_capture:
            try:
                self._graph = self._capture()
            except RuntimeError as error:
                self._may_capture = False
                note = f"no CUDA graph could be made, each kernel is launched by itself: {str(error).splitlines()[0]}"
        self._begin(step)
        for held, array in zip(self._inputs, batch, strict=True):
            held.copy_(torch.from_numpy(array))
        self._passed_by.fill_(health.passes_by(step))
        if self._graph is not None:
            self._graph.replay()
        else:
            self._update()
        train_loss, grad_norm = self._numbers.tolist()
        verdict = health.judge(step, train_loss, grad_norm)
        return Taken(train_loss, grad_norm, replace(verdict, note=verdict.note or note))

    def __str__(self) -> str:
        return f"{super().__str__()}, a whole update in one CUDA graph"

    def restore(self, saved: GPT, optimizer: dict[str, Tensor], scaler: dict[str, float]) -> None:
        super().restore(saved, optimizer, scaler)
        self._graph = None  # its moments are no longer the optimizer's

    def _update(self) -> None:
        """From the inputs to new weights, without a word to the host."""
        assert self._inputs is not None
        self._zero_grad()
        loss = self._add_gradients(*self._inputs, interrupted=lambda: False)
        assert loss is not None
        norm = self._clip()
        taken = loss.isfinite() & (norm < GRADIENT_LIMIT) & ~self._passed_by
        self.optimizer.found_inf = (~taken).float()  # type: ignore[attr-defined]  # fused AdamW then changes nothing
        self.optimizer.step()
        self._numbers[0].copy_(loss)
        self._numbers[1].copy_(norm)

    def _capture(self) -> torch.cuda.CUDAGraph:
        self._passed_by.fill_(True)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._update()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._update()
        return graph
