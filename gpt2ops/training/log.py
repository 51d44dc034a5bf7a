"""Listeners of the training loop: the console, the log file, MLflow."""

import math
import os
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from gpt2core.tokenizer import Tokenizer
from gpt2core.training.events import Row, TrainerEvents, TrainerView
from gpt2ops.pipeline import paths
from gpt2ops.process.console import printable
from gpt2ops.tracking.api import TrackedRun
from gpt2ops.training.pace import Pace
from gpt2ops.training.references import LossReference

_BAR = "training |{bar}| step {n_fmt}/{total_fmt}"
MIN_BAR = 8  # columns
# Without a terminal: seconds between progress lines.
LINE_SECONDS = 10.0


class TrainingLog(TrainerEvents):
    """`logs/training_log_YYYYMMDD-HHMMSS.txt`, and the same lines on the console."""

    def __init__(self) -> None:
        paths.LOGS.mkdir(exist_ok=True)
        self.path = paths.LOGS / f"training_log_{datetime.now():%Y%m%d-%H%M%S}.txt"
        self._file = self.path.open("ab", buffering=0)  # a line is on disk when it is written
        self._unwritten = b""
        self._tokenizer = Tokenizer()
        self._bar: ProgressBar | None = None
        self._reference: LossReference | None = None
        self._failing = False

    def attach(self, bar: "ProgressBar") -> None:
        self._bar = bar

    def compare_with(self, reference: LossReference) -> None:
        """Print the reference losses, and compare each evaluation with them."""
        self._reference = reference
        for line in reference.lines():
            self.say(line)

    def say(self, message: str) -> None:
        """Write a line to the file and, above the progress bar, to the console."""
        self._write(message)
        self._show(message)

    def _show(self, message: str) -> None:
        message = printable(message)
        if self._bar is not None:
            self._bar.print(message)
        else:
            print(message, flush=True)

    def _write(self, message: str) -> None:
        stamp = datetime.now().isoformat(sep=" ", timespec="seconds")
        self._unwritten += "".join(f"{stamp}  {line}\n" for line in message.splitlines()).encode()
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:  # a full disk must not stop training; the next line tries again
            if not self._failing:
                self._failing = True
                self._show(f"warning: {self.path} cannot be written ({error.strerror}); training continues")

    def on_start(self, trainer: TrainerView) -> None:
        # An interrupted run may have its checkpoint at step 0.
        start = "starting" if trainer.saved_step is None else f"resuming after step {trainer.step}"
        size, tokens = f"{trainer.batch_size} x {trainer.sequence_length}", trainer.tokens_per_step
        whole = tokens == trainer.batch_size * trainer.sequence_length
        self.say(
            f"{start}: {f'{size} = ' if whole else f'{trainer.batch_size} examples, about '}{tokens:,} tokens a step, "
            f"{trainer.batches_per_epoch:,} batches an epoch, at most {trainer.total_steps:,} steps"
        )

    def on_row(self, row: Row) -> None:
        if row.get("train_loss") is not None:
            self._write(
                f"step {row['step']}  epoch {row['epoch']:.2f}  train_loss {row['train_loss']:.5f}  "
                f"learning_rate {row['learning_rate']:.3e}  {row['tokens_per_second']:.0f} tokens/s"
            )

    def on_evaluation(self, row: Row) -> None:
        message = f"evaluation at step {row['step']}, {row['tokens_seen']:,} tokens seen: "
        if row["train_eval_loss"] is None:
            self.say(message + "the loss is not finite")
            return
        message += f"train_eval_loss {row['train_eval_loss']:.4f}"
        if row.get("val_loss") is not None:
            message += (
                f", val_loss {row['val_loss']:.4f}, val_perplexity {_plain(row['val_perplexity'] or 0.0)}, "
                f"val_token_accuracy {row['val_token_accuracy']:.1%}"
            )
        if self._reference is not None:
            message += f", {self._reference.place(row.get('val_loss') or row['train_eval_loss'])}"
        self.say(message)

    def on_sample(self, step: int, token_ids: list[int]) -> None:
        lines = self._tokenizer.decode(token_ids).splitlines()
        self.say("  sample: " + " | ".join(line.strip() for line in lines if line.strip()))

    def on_best(self, step: int, name: str, value: float, directory: Path) -> None:
        name = "train_eval_loss" if name == "train_loss" else name  # best_by is decided by evaluations
        self.say(f"  new best {name} {value:.4f} at step {step}, saved to {directory}")

    def on_checkpoint(self, step: int, directory: Path) -> None:
        self._write(f"checkpoint at step {step} saved to {directory}")

    def on_note(self, message: str) -> None:
        self.say(message)

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()


class ProgressBar(TrainerEvents):
    """A bar with loss, learning rate, tokens/s and time left; without a terminal, a line every ten seconds."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._printed_at = time.monotonic()
        self._pace = Pace()

    def print(self, message: str) -> None:
        if self._bar is not None:
            self._bar.write(message)
        else:
            print(message, flush=True)

    def on_start(self, trainer: TrainerView) -> None:
        self._pace.start(trainer.step)
        if sys.stderr.isatty():
            self._bar = tqdm(total=trainer.total_steps, initial=trainer.step, bar_format=_BAR, dynamic_ncols=True)

    def on_step(self, trainer: TrainerView, train_loss: float) -> None:
        self._pace.tick(trainer.step)
        if self._bar is not None:
            self._bar.bar_format = self._line(trainer, os.get_terminal_size(sys.stderr.fileno()).columns)
            self._bar.update(trainer.step - self._bar.n)  # a run may roll back
        elif time.monotonic() - self._printed_at > LINE_SECONDS:
            self._printed_at = time.monotonic()
            print(f"step {trainer.step}/{trainer.total_steps}  {'  '.join(self._facts(trainer))}", flush=True)

    def _facts(self, trainer: TrainerView) -> list[str]:
        speed = self._pace.steps_per_second * trainer.tokens_per_step
        left = tqdm.format_interval(self._pace.seconds_for(trainer.total_steps - trainer.step) or 0.0)
        return [
            f"loss {math.nan if trainer.smoothed_loss is None else trainer.smoothed_loss:.3f}",
            f"lr {trainer.learning_rate:.1e}",
            f"{speed:,.0f} tok/s",
            f"at most {left} left",
        ]

    def _line(self, trainer: TrainerView, columns: int) -> str:
        """As many facts as fit beside the bar; the learning rate is dropped first, the loss never."""
        loss, rate, speed, left = self._facts(trainer)
        room = columns - len(f"training ||  step {trainer.total_steps}/{trainer.total_steps}") - MIN_BAR
        for facts in ([loss, rate, speed, left], [loss, speed, left], [loss, left], [loss]):
            text = "".join(f"  {fact}" for fact in facts)
            if len(text) <= room:
                break
        return _BAR + text

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class MLflowRows(TrainerEvents):
    """Logs every row as metrics of the MLflow run."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    def on_row(self, row: Row) -> None:
        self.run.log_metrics({key: value for key, value in row.items() if key != "step"}, step=int(row["step"] or 0))

    def on_start(self, trainer: TrainerView) -> None:
        """Send rows that a killed run had not sent; the client skips steps that MLflow already has."""
        for row in trainer.history:
            self.on_row(row)

    def before_checkpoint(self, step: int) -> None:
        self.run.secure()  # a run that resumes from this checkpoint does not repeat these steps


def _plain(perplexity: float) -> str:
    """With one decimal, or in scientific notation if very large."""
    return f"{perplexity:.1f}" if perplexity < 1e7 else f"{perplexity:.1e}"
