"""Keeping a run's checkpoints and best weights: a full disk does not stop the run, and a GPU does not wait for a disk.

On a CPU a save is written at once. A GPU's weights are copied on the GPU, which takes milliseconds, and a thread
brings the copy to the disk while training goes on.
"""

import copy
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.storage.files import replaced_directory
from gpt2core.training import checkpoint as ckpt

# So many saves may wait for the disk, each with its copy of the weights: the best ones and a checkpoint of one step.
WAITING = 2


class Keeper:
    """Writes into `root`: `best` and `step-00000250`. `note` hears what could not be saved, each in its turn."""

    def __init__(self, root: Path, keep_last: int, *, background: bool, note: Callable[[str], None]) -> None:
        self.root, self.keep_last = root, keep_last
        self._note = note
        self._worker = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._waiting: deque[tuple[str, Future[None], Callable[[], None]]] = deque()
        self._unsaved_best: tuple[int, GPT] | None = None  # what the disk did not take

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
        """Write a checkpoint and then remove the oldest; `done` is called by this thread once it is safe."""
        directory = self.root / f"step-{step:08d}"

        def write(model: GPT, optimizer: dict[str, Tensor]) -> None:
            # A checkpoint speaks of the best weights, so they go first.
            self._write_waiting_best()
            ckpt.save_checkpoint(directory, model, optimizer, state)
            with suppress(OSError):  # tried again after the next save
                ckpt.remove_older(self.root, self.keep_last)

        what = (
            f"checkpoint at step {step} could not be saved; the earlier ones are intact, the next is tried in its turn"
        )
        self._do(what, write, model, optimizer, lambda: done(directory))

    def save_best(self, step: int, model: GPT, done: Callable[[], None]) -> None:
        """Put the weights into `best`; where the disk does not take them they stay in memory until it does."""

        def write(model: GPT, _: dict[str, Tensor]) -> None:
            try:
                self._write_best(model)
            except OSError:
                self._unsaved_best = (step, copy.deepcopy(model).cpu())
                raise
            self._unsaved_best = None

        what = f"the best weights, of step {step}, could not be saved; they stay in memory and are tried again"
        self._do(what, write, model, {}, done)

    def poll(self, leave: int | None = None) -> None:
        """Report the saves that are done; wait until at most `leave` are not (None: wait for none)."""
        while self._waiting and (self._waiting[0][1].done() or (leave is not None and len(self._waiting) > leave)):
            what, future, done = self._waiting.popleft()
            self._settle(what, future.result, done)

    def finish(self) -> None:
        """Wait for every save. Raises UserError where the best weights are still not on the disk."""
        self.poll(leave=0)
        if self._unsaved_best is None:
            return
        step = self._unsaved_best[0]
        try:
            self._write_waiting_best()
        except OSError as error:
            kept = ckpt.step_directories(self.root)
            how = f"the run goes on from {kept[-1]}" if kept else "the run starts anew"
            raise UserError(
                f"the best weights, of step {step}, could not be written to {self.best_directory} ({error.strerror}); "
                f"free some space and run again: {how}."
            ) from None

    def remove_after(self, step: int) -> None:
        """Checkpoints later than `step` go: a run that went back would find its way into them again."""
        for directory in ckpt.step_directories(self.root):
            if ckpt.step_of(directory) > step:
                shutil.rmtree(directory)

    def _do(
        self,
        what: str,
        write: Callable[[GPT, dict[str, Tensor]], None],
        model: GPT,
        optimizer: dict[str, Tensor],
        done: Callable[[], None],
    ) -> None:
        if self._worker is None:
            self._settle(what, lambda: write(model, optimizer), done)
            return
        self.poll(leave=WAITING - 1)
        try:
            model = copy.deepcopy(model)
            optimizer = {name: tensor.clone() for name, tensor in optimizer.items()}
        except torch.OutOfMemoryError:  # no room for a copy: training waits for the disk
            self.poll(leave=0)
            self._settle(what, lambda: write(model, optimizer), done)
            return
        stream = _copy_stream(next(model.parameters()).device)

        def work() -> None:
            with stream:
                write(model, optimizer)

        self._waiting.append((what, self._worker.submit(work), done))

    def _settle(self, what: str, result: Callable[[], None], done: Callable[[], None]) -> None:
        try:
            result()
        except OSError as error:
            self._note(f"{what} ({error.strerror or error})")
        else:
            done()

    def _write_best(self, model: GPT) -> None:
        with replaced_directory(self.best_directory) as partial:
            model.save_pretrained(partial)

    def _write_waiting_best(self) -> None:
        if self._unsaved_best is not None:
            self._write_best(self._unsaved_best[1])
            self._unsaved_best = None


def _copy_stream(device: torch.device) -> AbstractContextManager[object]:
    """Where a thread copies from a GPU: beside the training's own queue, after what that has been given so far."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
