"""Training curves on matplotlib axes, for the PNG files of the stage `plot` and the SVG charts of `report`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#666666"
CURVES = {
    "val_perplexity": "perplexity, validation",
    "val_token_accuracy": "token accuracy, validation",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}
# More points than pixels are not visible.
MAX_POINTS = 600

History = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LossLine:
    """A curve of the loss chart, distinct also without colour."""

    key: str
    label: str
    short: str
    color: str
    dashes: str
    marker: str | None


LOSSES = (
    LossLine("train_loss", "training batches", "batches", BLUE, "-", None),
    LossLine("train_eval_loss", "training text, without dropout", "training", GREEN, ":", "s"),
    LossLine("val_loss", "validation text", "validation", ORANGE, "--", "o"),
)


def curve(history: History, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows with a value; NaN, a gap in the line, for a logged row without one."""
    logged = {"train_loss", "grad_norm"}  # None in such a row: not finite
    points = [
        (row["step"], math.nan if row.get(key) is None else row[key])
        for row in history
        if row.get(key) is not None or (key in logged and row.get("tokens_per_second") is not None)
    ]
    if all(math.isnan(value) for _, value in points):
        return [], []
    return [step for step, _ in points], [value for _, value in points]


def thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """At most about MAX_POINTS points: minimum and maximum of each interval, so that every spike stays."""
    size = math.ceil(2 * len(steps) / MAX_POINTS)
    if size <= 2:
        return list(steps), list(values)
    kept: list[int] = [0]
    for start in range(0, len(steps), size):
        stretch = range(start, min(start + size, len(steps)))
        known = [place for place in stretch if not math.isnan(values[place])]
        kept += sorted({min(known, key=lambda i: values[i]), max(known, key=lambda i: values[i])}) if known else [start]
    kept.append(len(steps) - 1)
    places = list(dict.fromkeys(kept))
    return [steps[place] for place in places], [values[place] for place in places]


def draw_loss(axes: Any, history: History) -> list[tuple[LossLine, float]]:
    """Returns the drawn lines with their last values."""
    drawn = []
    for line in LOSSES:
        steps, values = thinned(*curve(history, line.key))
        if not steps:
            continue
        marker = line.marker or ("o" if len(steps) == 1 else None)
        axes.plot(
            steps, values, color=line.color, linestyle=line.dashes, linewidth=1.2, marker=marker, markersize=3,
            label=line.label,
        )  # fmt: skip
        drawn.append((line, next(value for value in reversed(values) if not math.isnan(value))))
    return drawn


def draw_curve(axes: Any, history: History, key: str) -> bool:
    """Returns False, with nothing drawn, if the run has no value of `key`."""
    steps, values = thinned(*curve(history, key))
    if not steps:
        return False
    axes.plot(steps, values, color=BLUE, linewidth=1.2, marker="o" if len(steps) < 40 else None, markersize=3)
    known = [value for value in values if not math.isnan(value)]
    if min(known) > 0 and max(known) / min(known) > 100:
        axes.set_yscale("log")
    return True


def draw_level(axes: Any, level: float, dashes: Any = "--") -> None:
    """A horizontal line, for a target or a reference."""
    axes.axhline(level, color=GREY, linestyle=dashes, linewidth=1)
