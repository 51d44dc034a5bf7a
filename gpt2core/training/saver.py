"""Writes a run's checkpoints and best weights: a full disk does not stop the run, and a GPU does not wait for a disk.

On a CPU a save is written at once. On a GPU the weights are copied in its memory, which takes milliseconds, and a
thread writes the copy to the disk while training continues.
"""

import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gpt2core import runtime
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.storage.files import replaced_directory
from gpt2core.training import checkpoint as ckpt

# Saves that may wait for the disk, each with a copy of the weights: the best weights and a checkpoint of one step.
MAX_PENDING = 2


class CheckpointWriter:
    """Writes into `root`: `best` and `step-00000250`. `note` receives a message for each save that fails."""

    def __init__(self, root: Path, keep_last: int, *, background: bool, note: Callable[[str], None]) -> None:
        self.root, self.keep_last = root, keep_last
        self._note = note
        self._worker = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: deque[tuple[str, Future[None], Callable[[], None]]] = deque()
        self._unsaved_best: tuple[int, ckpt.Weights] | None = None  # its write failed

    @property
    def best_directory(self) -> Path:
        return self.root / "best"

    def save(
        self,
        step: int,
        model: GPT,
        optimizer: dict[str, Tensor],
        state: dict[str, Any],
        done: Callable[[Path], None],
    ) -> None:
        """Write a checkpoint, then remove the oldest; the calling thread calls `done` once it is on the disk."""
        directory = self.root / f"step-{step:08d}"

        def write(weights: ckpt.Weights, optimizer: dict[str, Tensor]) -> None:
            # The state names the best step, so its weights are written first.
            self._write_unsaved_best()
            ckpt.save_checkpoint(directory, weights, optimizer, state)
            with suppress(OSError):  # tried again after the next save
                ckpt.remove_older(self.root, self.keep_last)

        failure = f"checkpoint at step {step} could not be saved; training continues, the earlier ones are intact"
        self._do(failure, write, model, optimizer, lambda: done(directory))

    def save_best(self, step: int, model: GPT, done: Callable[[], None]) -> None:
        """Write the weights to `best`; if that fails they stay in memory and the next save tries again."""

        def write(weights: ckpt.Weights, _: dict[str, Tensor]) -> None:
            try:
                self._write_best(weights)
            except OSError:
                self._unsaved_best = (step, weights.copied("cpu"))
                raise
            self._unsaved_best = None

        failure = f"the best weights, of step {step}, could not be saved; they stay in memory and are tried again"
        self._do(failure, write, model, {}, done)

    def poll(self, leave: int | None = None) -> None:
        """Report finished saves; wait until at most `leave` are pending (None: do not wait)."""
        while self._pending and (self._pending[0][1].done() or (leave is not None and len(self._pending) > leave)):
            failure, future, done = self._pending.popleft()
            self._report(failure, future.result, done)

    def finish(self) -> None:
        """Wait for every save. Raises UserError where the best weights are still not on the disk."""
        self.poll(leave=0)
        if self._unsaved_best is None:
            return
        step = self._unsaved_best[0]
        try:
            self._write_unsaved_best()
        except OSError as error:
            kept = ckpt.step_directories(self.root)
            how = f"it resumes from {kept[-1]}" if kept else "it starts from the beginning"
            raise UserError(
                f"the best weights, of step {step}, could not be written to {self.best_directory} ({error.strerror}); "
                f"free some space and run again: {how}."
            ) from None

    def newest(self, at_most: int | None = None) -> tuple[ckpt.Checkpoint | None, list[str]]:
        """`checkpoint.newest_valid` on every rank; the first one alone sets damaged checkpoints aside."""
        if runtime.rank() != 0:
            dist.barrier()
        found = ckpt.newest_valid(self.root, at_most)
        if runtime.rank() == 0 and dist.is_initialized():
            dist.barrier()
        return found

    def start_over(self, total_steps: int) -> str | None:
        """Remove an earlier run's checkpoints, or move them aside if it went beyond `total_steps`: returns a note."""
        directories = ckpt.step_directories(self.root)
        if directories and ckpt.step_of(directories[-1]) > total_steps:
            aside = self.root.with_name(f"{self.root.name}-{directories[-1].name}")
            shutil.rmtree(aside, ignore_errors=True)
            self.root.rename(aside)
            return f"this run is shorter than the earlier one, whose checkpoints are kept in {aside}"
        for directory in directories:
            shutil.rmtree(directory)
        return None

    def remove_after(self, step: int) -> None:
        """Remove checkpoints after `step`: after a rollback, a resumed run must not load them."""
        for directory in ckpt.step_directories(self.root):
            if ckpt.step_of(directory) > step:
                shutil.rmtree(directory)

    def _do(
        self,
        failure: str,
        write: Callable[[ckpt.Weights, dict[str, Tensor]], None],
        model: GPT,
        optimizer: dict[str, Tensor],
        done: Callable[[], None],
    ) -> None:
        weights = ckpt.Weights.of(model)
        if self._worker is None:
            self._report(failure, lambda: write(weights, optimizer), done)
            return
        self.poll(leave=MAX_PENDING - 1)
        try:
            weights = weights.copied()
            optimizer = {name: tensor.clone() for name, tensor in optimizer.items()}
        except torch.OutOfMemoryError:  # no memory for a copy: training waits for the disk
            self.poll(leave=0)
            self._report(failure, lambda: write(weights, optimizer), done)
            return
        stream = _copy_stream(next(model.parameters()).device)

        def work() -> None:
            with stream:
                write(weights, optimizer)

        self._pending.append((failure, self._worker.submit(work), done))

    def _report(self, failure: str, result: Callable[[], None], done: Callable[[], None]) -> None:
        try:
            result()
        except OSError as error:
            self._note(f"{failure} ({error.strerror or error})")
        else:
            done()

    def _write_best(self, weights: ckpt.Weights) -> None:
        with replaced_directory(self.best_directory) as partial:
            weights.save_pretrained(partial)

    def _write_unsaved_best(self) -> None:
        if self._unsaved_best is not None:
            self._write_best(self._unsaved_best[1])
            self._unsaved_best = None


def _copy_stream(device: torch.device) -> AbstractContextManager[object]:
    """A stream of its own for a thread's copies from a GPU, after all work queued so far on the training's stream."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
