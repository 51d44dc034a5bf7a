"""Listeners for early warnings and for the status file that a flow run reads."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from gpt2core.kernels.cores import usable_cores
from gpt2core.training.events import Row, TrainerEvents, TrainerView
from gpt2ops.tracking.api import TrackedRun
from gpt2ops.training.diagnostics import Diagnostics, RunFacts, TrainingWarning
from gpt2ops.training.pace import Pace
from gpt2ops.training.references import LossReference
from gpt2ops.training.status import LiveStatus, write_status

WARNINGS_TAG = "warnings"
WARNINGS_FILE = "logs/warnings.txt"
STATUS_SECONDS = 2.0


class Warnings(TrainerEvents):
    """Each finding as a line to `say`, in the tag `warnings` of the MLflow run and in its logs/warnings.txt."""

    def __init__(self, reference: LossReference, tracked: TrackedRun, say: Callable[[str], None], init: str) -> None:
        """`init` is model.init: new weights (`scratch`) start at another loss than trained ones."""
        self.reference, self.tracked, self.say, self.init = reference, tracked, say, init
        self.lines: list[str] = []
        self._diagnostics: Diagnostics | None = None

    def on_start(self, trainer: TrainerView) -> None:
        self._diagnostics = Diagnostics(
            RunFacts(
                total_steps=trainer.total_steps,
                tokens_per_step=trainer.tokens_per_step,
                learning_rate=trainer.config.learning_rate,
                max_grad_norm=trainer.config.max_grad_norm,
                target_loss=trainer.config.target_loss,
                best_by=trainer.config.best_by,
                from_scratch=self.init == "scratch",
                uniform_loss=self.reference.uniform,
                unigram_loss=self.reference.unigram,
            )
        )
        self._diagnostics.replay(trainer.history)
        self.lines = [finding.line() for finding in self._diagnostics.findings]

    def on_step(self, trainer: TrainerView, train_loss: float) -> None:
        if trainer.step == 1 and self._diagnostics is not None:
            self._report(self._diagnostics.first_loss(train_loss))

    def on_row(self, row: Row) -> None:
        if self._diagnostics is not None:
            self._report(self._diagnostics.row(row))

    def _report(self, findings: list[TrainingWarning]) -> None:
        for finding in findings:
            line = finding.line() + (f" ({machine_state()})" if finding.name == "throughput" else "")
            self.lines.append(line)
            self.say(line)
        if findings:
            self.tracked.set_tags({WARNINGS_TAG: json.dumps(self.lines, ensure_ascii=False)})
            self.tracked.log_text("".join(f"{line}\n" for line in self.lines), WARNINGS_FILE)


def machine_state() -> str:
    """Load, free memory and swap at this moment, which may explain slow training."""
    memory = psutil.virtual_memory()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    facts = [] if load is None else [f"load {load:.1f} on {usable_cores()} cores"]
    facts.append(f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB of memory free")
    if swapped := psutil.swap_memory().used:
        facts.append(f"{swapped / 2**30:.1f} GiB swapped out")
    return ", ".join(facts)


class StatusFile(TrainerEvents):
    """Keeps gpt2ops.training.status.STATUS up to date, at most every two seconds."""

    def __init__(self, tracked: TrackedRun, warnings: Warnings) -> None:
        self.tracked, self.warnings = tracked, warnings
        self._pace = Pace()
        self._written_at = 0.0

    def on_start(self, trainer: TrainerView) -> None:
        self._pace.start(trainer.step)
        self._write(trainer)

    def on_step(self, trainer: TrainerView, train_loss: float) -> None:
        self._pace.tick(trainer.step)
        if time.monotonic() - self._written_at > STATUS_SECONDS or trainer.step == trainer.total_steps:
            self._write(trainer)

    def _write(self, trainer: TrainerView) -> None:
        self._written_at = time.monotonic()
        speed = self._pace.steps_per_second * trainer.tokens_per_step
        status = LiveStatus(
            step=trainer.step,
            total_steps=trainer.total_steps,
            loss=trainer.smoothed_loss,
            tokens_per_second=speed or None,
            seconds_left=self._pace.seconds_for(trainer.total_steps - trainer.step),
            run_id=self.tracked.run_id,
            experiment_id=self.tracked.experiment_id,
            warnings=len(self.warnings.lines),
        )
        with suppress(OSError):  # training must not stop because its status cannot be written
            write_status(status)
