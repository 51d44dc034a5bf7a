"""Early warnings of a training run: one finding where something looks wrong, with what to try.

A pure function of the trainer's history (gpt2core.training.events): a resumed run replays its history and reports
nothing twice. Every threshold is compared with the run's own noise, by medians and median absolute deviations
(Rousseeuw and Croux 1993): a hard batch, a slow second or a lucky evaluation is no finding.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np

from gpt2core.training.events import Row

# The smoothed loss: median of the rows of the last so many steps, and of so many rows at least.
SMOOTH_STEPS, SMOOTH_ROWS, MAX_SMOOTH_ROWS = 30, 5, 50
# How far the loss of new weights may exceed ln(V): the spread of the first logits gives 0.15 for GPT-2 124M.
FIRST_LOSS_SLACK = 0.3
# Standard deviation of single tokens' losses, in nats.
TOKEN_LOSS_SPREAD = 3.0
FLAT_BLOCKS, FLAT_STEPS, FLAT_GROWTH = 16, 100, 1.05
GRADIENT_RATIO, GRADIENT_CALM_RATIO, GRADIENT_Z, GRADIENT_ROWS = 5.0, 2.5, 6.0, 20
CLIPPED_ROWS, CLIPPED_RATIO = 50, 5.0
SLOW_SHARE, SLOW_SECONDS, SLOW_ROWS = 0.6, 30.0, 3
RATE_SHARE, RATE_LEAST = 0.01, 1e-7

# One cause, one warning: while these are active, their consequences are not reported.
_DIVERGING = {"loss_above_uniform", "loss_rising", "gradients_exploding"}


@dataclass(frozen=True)
class RunFacts:
    """Facts that the rows are compared with; losses in nats per token."""

    total_steps: int
    tokens_per_step: int
    learning_rate: float  # peak
    max_grad_norm: float | None
    target_loss: float | None
    best_by: str  # val_loss | train_loss
    from_scratch: bool
    uniform_loss: float  # ln(V)
    unigram_loss: float


@dataclass(frozen=True)
class TrainingWarning:
    """A problem at `step`; `name` is its kind."""

    name: str
    step: int
    problem: str
    advice: str

    def line(self) -> str:
        return f"warning: step {self.step:,}: {self.problem}; try {self.advice}"


# (problem, advice) for a problem, True for none, None where the rows do not tell yet.
CheckResult = tuple[str, str] | bool | None


class Diagnostics:
    """Takes rows in order and returns new findings. Each kind is reported once, and again after it was resolved."""

    def __init__(self, facts: RunFacts) -> None:
        self.facts = facts
        self.findings: list[TrainingWarning] = []
        self._active: set[str] = set()
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._rate = 0.0
        self._warm_from: int | None = None  # index of the first row at the full learning rate
        self._best_smooth = math.inf
        self._flat_at = 0  # number of rows that the last test for a flat loss saw
        self._gradients: deque[float] = deque(maxlen=CLIPPED_ROWS)
        self._usual_gradients: deque[float] = deque(maxlen=200)  # without the last five, and without exploding ones
        self._speeds: deque[float] = deque(maxlen=200)
        self._slow_seconds, self._slow_rows = 0.0, 0
        self._last_tokens = 0
        self._evaluations: deque[tuple[int, float, float]] = deque(maxlen=200)  # step, val_loss, train_eval_loss
        self._best_evaluation: tuple[int, float, float] | None = None
        self._above_best = 0  # evaluations in a row clearly above the best one

    def first_loss(self, loss: float) -> list[TrainingWarning]:
        """The loss of the very first batch, before any update."""
        return self._update(1, "first_loss", self._check_first_loss(loss))

    def replay(self, rows: Iterable[Row]) -> None:
        """Rows from before a resume, whose findings were reported then."""
        for row in rows:
            self.row(row)

    def row(self, row: Row) -> list[TrainingWarning]:
        """Microseconds a row, tens of them; `row` as in `Trainer.history`."""
        step, found = int(row["step"] or 0), []
        if (loss := row.get("train_loss")) is not None:
            self._take(step, loss, row)
            smooth = self._smooth()
            found += self._update(step, "loss_above_uniform", self._check_uniform(smooth))
            found += self._update(step, "loss_rising", self._check_rising(smooth))
            found += self._update(step, "learning_rate_zero", self._check_rate(smooth))
            found += self._update(step, self._flat_name(smooth), self._check_flat(smooth))
            found += self._update(step, "gradients_exploding", self._check_gradients())
            found += self._update(step, "always_clipped", self._check_clipping())
            found += self._update(step, "throughput", self._check_speed(row))
        if (val_loss := row.get("val_loss")) is not None and (train_loss := row.get("train_eval_loss")) is not None:
            found += self._update(step, "overfitting", self._check_held_out(step, val_loss, train_loss))
        return found

    def _update(self, step: int, name: str, verdict: CheckResult) -> list[TrainingWarning]:
        if verdict is True:
            self._active.discard(name)
        if not isinstance(verdict, tuple) or name in self._active:
            return []
        self._active.add(name)
        finding = TrainingWarning(name, step, *verdict)
        self.findings.append(finding)
        return [finding]

    def _take(self, step: int, loss: float, row: Row) -> None:
        self._steps.append(step)
        self._losses.append(loss)
        self._rate = row.get("learning_rate") or 0.0
        if gradient := row.get("grad_norm"):
            if len(self._gradients) >= 5 and "gradients_exploding" not in self._active:
                self._usual_gradients.append(self._gradients[-5])
            self._gradients.append(gradient)
        if self._warm_from is None and self._rate >= 0.95 * self.facts.learning_rate:
            self._warm_from = len(self._steps) - 1

    # -- the training loss ---------------------------------------------------------------------------------------

    def _check_first_loss(self, loss: float) -> CheckResult:
        facts = self.facts
        noise = 3 * TOKEN_LOSS_SPREAD / math.sqrt(facts.tokens_per_step)
        if facts.from_scratch and loss < facts.uniform_loss - 1.0:
            return (
                f"the first loss is {loss:.2f}, but new weights know nothing and start at {facts.uniform_loss:.2f}",
                "whether these weights are really new, and whether the targets are shifted by one token",
            )
        if facts.from_scratch and loss > facts.uniform_loss + 1.0:
            return (
                f"the first loss is {loss:.2f}, but new weights start near {facts.uniform_loss:.2f}",
                "run.precision: fp32, and a smaller spread of the new weights if you changed it",
            )
        if not facts.from_scratch and loss > facts.unigram_loss + 0.5 + noise:
            return (
                f"the first loss is {loss:.2f}: these weights know this text less than its token frequencies do "
                f"({facts.unigram_loss:.2f})",
                "whether model.init names the weights you meant, made with GPT-2's tokenizer, and whether the text is "
                "of a kind they can know",
            )
        return True

    def _smooth(self) -> float | None:
        """Median of the last rows; None until there are enough."""
        recent = self._steps[-MAX_SMOOTH_ROWS:]
        if len(recent) < SMOOTH_ROWS or recent[-1] - self._steps[0] < SMOOTH_STEPS:
            return None
        count = max(SMOOTH_ROWS, len(recent) - bisect_left(recent, recent[-1] - SMOOTH_STEPS))
        return median(self._losses[-count:])

    def _noise(self) -> float:
        """Spread of the smoothed loss, from differences of neighbouring rows, which a trend hardly affects."""
        recent = np.asarray(self._losses[-MAX_SMOOTH_ROWS:])
        return 1.25 * _spread(np.diff(recent)) / math.sqrt(2 * SMOOTH_ROWS)

    def _check_uniform(self, smooth: float | None) -> CheckResult:
        if smooth is None:
            return None
        uniform = self.facts.uniform_loss
        if smooth > uniform + FIRST_LOSS_SLACK and "loss_rising" not in self._active:
            return (
                f"the loss is {smooth:.2f}, above the {uniform:.2f} of a uniform guess",
                f"a train.learning_rate ten times lower (now {self.facts.learning_rate:g}) or more train.warmup_steps",
            )
        return True if smooth < uniform else None

    def _check_rising(self, smooth: float | None) -> CheckResult:
        if smooth is None:
            return None
        self._best_smooth = min(self._best_smooth, smooth)
        best = self._best_smooth
        limit = max(0.3 + 0.15 * best, 6 * self._noise())
        if smooth > best + limit and "loss_above_uniform" not in self._active:
            return (
                f"the loss has risen to {smooth:.2f} and was {best:.2f}",
                f"a lower train.learning_rate (now {self.facts.learning_rate:g}), more train.warmup_steps"
                + ("" if self.facts.max_grad_norm is not None else ", or train.max_grad_norm: 1.0"),
            )
        return True if smooth < best + 0.5 * limit else None

    def _flat_name(self, smooth: float | None) -> str:
        at_frequencies = smooth is not None and smooth > self.facts.unigram_loss - 0.15
        return "only_frequencies" if at_frequencies else "loss_flat"

    def _check_flat(self, smooth: float | None) -> CheckResult:
        """Whether the loss fell over the second half of the run so far, as a healthy one does however long it is.

        Tested each time the run has grown by a twentieth, so its cost is negligible.
        """
        count = len(self._steps)
        if smooth is None or self._warm_from is None or count < FLAT_GROWTH * self._flat_at:
            return None
        start = max(self._warm_from, bisect_left(self._steps, self._steps[-1] // 2))
        if count - start < FLAT_BLOCKS or self._steps[-1] - self._steps[start] < FLAT_STEPS:
            return None
        self._flat_at = count
        fall, error = _fall(np.asarray(self._losses[start:]))
        if self._active & (_DIVERGING | {"learning_rate_zero"}):
            return None
        facts, before, steps = self.facts, smooth + fall, self._steps[-1] - self._steps[start]
        falls = fall - 3 * error > 0
        if smooth > facts.unigram_loss - 0.15:
            # Down to token frequencies a loss falls in a few hundred steps; slowly is too slowly.
            far = smooth > facts.unigram_loss + 0.5
            if fall + 2 * error < 0.03 * smooth and (far or (not falls and steps >= 2 * FLAT_STEPS)):
                return (
                    f"the loss is still {smooth:.2f} after {steps:,} steps that hardly changed it: the model knows at "
                    f"most how frequent each token is ({facts.unigram_loss:.2f})",
                    f"a higher train.learning_rate (now {facts.learning_rate:g}), a larger train.batch_size, or more "
                    "steps",
                )
        if falls:
            self._active -= {"only_frequencies", "loss_flat"}
            return True
        if smooth > facts.unigram_loss - 0.15:
            return None
        floor = 1.05 * facts.target_loss if facts.target_loss is not None else 0.1 * facts.unigram_loss
        # Weights that know the language already fall fast and then hardly; new ones fall by several per cent.
        share = 0.01 if facts.from_scratch else 0.0015
        rising = fall + error < 0  # soon a finding of its own
        if smooth <= floor or rising or fall + 2 * error > share * smooth:
            return None
        return (
            f"the loss has not fallen for {steps:,} steps ({before:.2f} then, {smooth:.2f} now)",
            "a learning rate that decays (train.schedule: cosine), a larger model, or stopping here",
        )

    def _check_rate(self, smooth: float | None) -> CheckResult:
        facts, left = self.facts, self.facts.total_steps - self._steps[-1]
        if smooth is None or self._warm_from is None or left <= 0:
            return None
        if facts.learning_rate < RATE_LEAST:
            return (
                f"the learning rate is {facts.learning_rate:g}, which changes next to nothing",
                "train.learning_rate: 3.0e-4",
            )
        missed = facts.target_loss is not None and smooth > 1.05 * facts.target_loss
        if missed and self._rate < RATE_SHARE * facts.learning_rate:
            return (
                f"the learning rate is down to {self._rate:.1e} and the loss {smooth:.2f} is above the target "
                f"{facts.target_loss:g}; the last {left:,} steps will change little",
                "more train.stop.max_steps, which also stretches the schedule, or a higher train.min_learning_rate",
            )
        return True

    # -- gradients and speed -------------------------------------------------------------------------------------

    def _check_gradients(self) -> CheckResult:
        if len(self._usual_gradients) < GRADIENT_ROWS:
            return None
        recent, usual = median(list(self._gradients)[-5:]), np.log(self._usual_gradients)
        middle = float(np.median(usual))
        ratio = recent / math.exp(middle)
        # A spread of 0.1 in the logarithm is the least that a run of batches has.
        z = (math.log(recent) - middle) / max(0.1, _spread(usual))
        if ratio > GRADIENT_RATIO and z > GRADIENT_Z:
            clip = "" if self.facts.max_grad_norm is not None else "train.max_grad_norm: 1.0, or "
            return (
                f"gradients are exploding: their norm is {recent:.3g}, {ratio:.0f} times the usual",
                f"{clip}a lower train.learning_rate (now {self.facts.learning_rate:g})",
            )
        return True if ratio < GRADIENT_CALM_RATIO else None

    def _check_clipping(self) -> CheckResult:
        limit = self.facts.max_grad_norm
        gradients = self._gradients
        if limit is None or self._warm_from is None or len(gradients) < CLIPPED_ROWS or self._active & _DIVERGING:
            return None
        if min(gradients) > limit and median(gradients) > CLIPPED_RATIO * limit:
            return (
                f"every step is clipped: the gradient's norm is about {median(gradients):.3g}, and train.max_grad_norm "
                f"is {limit:g}",
                "a higher train.max_grad_norm if the loss falls well, a lower train.learning_rate if it does not",
            )
        return True if median(gradients) < 0.5 * CLIPPED_RATIO * limit else None

    def _check_speed(self, row: Row) -> CheckResult:
        speed, tokens = row.get("tokens_per_second"), int(row.get("tokens_seen") or 0)
        new_tokens, self._last_tokens = tokens - self._last_tokens, tokens
        if not speed:
            return None
        usual = median(self._speeds) if len(self._speeds) >= 2 * SLOW_ROWS else 0.0
        self._speeds.append(speed)
        if speed >= SLOW_SHARE * usual:
            self._slow_seconds, self._slow_rows = 0.0, 0
            return True if speed > 0.8 * usual else None
        self._slow_seconds += new_tokens / speed
        self._slow_rows += 1
        if self._slow_seconds < SLOW_SECONDS or self._slow_rows < SLOW_ROWS:
            return None
        return (
            f"training is slow: {speed:,.0f} tokens/s, usual in this run are {usual:,.0f}",
            "closing other programs on this machine; see whether memory is full (it swaps) or the processor is hot",
        )

    # -- held-out text -------------------------------------------------------------------------------------------

    def _check_held_out(self, step: int, val_loss: float, train_loss: float) -> CheckResult:
        self._evaluations.append((step, val_loss, train_loss))
        best = self._best_evaluation
        if best is None or val_loss <= best[1]:
            self._best_evaluation, self._above_best = (step, val_loss, train_loss), 0
            return True
        values = np.asarray([value for _, value, _ in self._evaluations])
        noise = _spread(np.diff(values, n=2)) / math.sqrt(6) if len(values) >= 6 else 0.0
        clearly = val_loss > best[1] + max(0.01 * best[1], 3 * noise)
        self._above_best = self._above_best + 1 if clearly else 0
        if self._above_best < 2 or train_loss >= best[2]:
            return None
        kept = (
            f"stopping here (step {best[0]:,} is kept as the best)"
            if self.facts.best_by == "val_loss"
            else f"train.best_by: val_loss, which keeps step {best[0]:,}"
        )
        return (
            f"the held-out loss rises ({best[1]:.3f} at step {best[0]:,}, {val_loss:.3f} now) while the training loss "
            f"falls ({best[2]:.3f}, {train_loss:.3f}): the model learns its text by heart",
            f"{kept}, more text, train.stop.patience: 2, or model.drop_rate: 0.1",
        )


def _spread(values: np.ndarray) -> float:
    """Standard deviation by the median absolute deviation, 0 for less than two values."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if len(values) > 1 else 0.0


def _fall(losses: np.ndarray) -> tuple[float, float]:
    """By how much the second half is lower than the first, and that difference's standard error.

    Halves are of blocks of neighbouring rows; their spread, around the trend and from one to the next, has in it what
    neighbours share (the same chapter, the same epoch), which rows taken alone would hide.
    """
    blocks = np.asarray([np.median(block) for block in np.array_split(losses, FLAT_BLOCKS)])
    position = np.arange(FLAT_BLOCKS) - (FLAT_BLOCKS - 1) / 2
    slope = float(position @ blocks / (position @ position))
    around = blocks - blocks.mean() - slope * position
    noise = max(float(np.std(around, ddof=2)), _spread(np.diff(blocks)) / math.sqrt(2))
    half = FLAT_BLOCKS // 2
    return float(blocks[:half].mean() - blocks[half:].mean()), noise * math.sqrt(2 / half)
