"""Training curves on matplotlib axes, for the PNG files of the stage `plot` and the SVG charts of `report`."""

import math
from collections.abc import Callable, Mapping, Sequence
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
WIDTH_95 = 1.96  # standard errors on each side
FEW_POINTS = 5  # a line through fewer would suggest more than was measured

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


def loss_lines(metrics: Mapping[str, Any]) -> tuple[LossLine, ...]:
    """The curves of the loss chart; `metrics` is the content of train.json."""
    part = scored_part(metrics)
    return (
        LossLine("train_loss", "training batches, mean of each interval", "batches", BLUE, "-", None),
        LossLine("train_eval_loss", f"training text without dropout, {part}", "training", GREEN, ":", "s"),
        LossLine("val_loss", f"validation text, {part}", "validation", ORANGE, "--", "o"),
    )


def scored_part(metrics: Mapping[str, Any]) -> str:
    """How much of a split an evaluation scored; runs of earlier versions did not record it."""
    batches = metrics.get("eval_batches", 0)
    if batches is None:
        return "full pass"
    return f"{batches:,} batches" if batches else "a part of it"


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


def draw_loss(axes: Any, history: History, metrics: Mapping[str, Any]) -> list[tuple[LossLine, float]]:
    """Returns the drawn lines with their last values. Few points are not joined; a full pass is a point of its own."""
    drawn = []
    for line in loss_lines(metrics):
        steps, values = thinned(*curve(history, line.key))
        if not steps:
            continue
        few = len(steps) < FEW_POINTS
        marker = line.marker or ("o" if few else None)
        axes.plot(
            steps, values, color=line.color, linestyle="none" if few else line.dashes, linewidth=1.2, marker=marker,
            markersize=5 if few else 3, label=line.label,
        )  # fmt: skip
        drawn.append((line, next(value for value in reversed(values) if not math.isnan(value))))
    draw_band(axes, history, ORANGE)
    if (full := metrics.get("train_loss_full")) is not None:
        label = "training text without dropout, full pass"
        axes.plot([metrics["steps"]], [full], color=GREEN, linestyle="none", marker="D", markersize=5, label=label)
    return drawn


def draw_band(axes: Any, history: History, color: str, shown: Callable[[float], float] = float) -> bool:
    """The 95% interval of each validation loss, as `shown` gives it; False, with nothing drawn, where it is not known.

    It is of the luck of the text that an evaluation scored; neighbours on one curve share that luck.
    """
    known = [row for row in history if row.get("val_loss") is not None and row.get("val_loss_stderr") is not None]
    if not known:
        return False
    edges = [[row["val_loss"] + sign * WIDTH_95 * row["val_loss_stderr"] for row in known] for sign in (-1, 1)]
    low, high = ([shown(min(loss, 700.0)) for loss in edge] for edge in edges)
    steps = [row["step"] for row in known]
    if len(known) < FEW_POINTS:
        axes.vlines(steps, low, high, color=color, alpha=0.3, linewidth=4)
    else:
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    return True


def draw_curve(axes: Any, history: History, key: str) -> bool:
    """Returns False, with nothing drawn, if the run has no value of `key`."""
    steps, values = thinned(*curve(history, key))
    if not steps:
        return False
    few = len(steps) < FEW_POINTS
    axes.plot(
        steps, values, color=BLUE, linestyle="none" if few else "-", linewidth=1.2,
        marker="o" if len(steps) < 40 else None, markersize=5 if few else 3,
    )  # fmt: skip
    if key == "val_perplexity":
        draw_band(axes, history, BLUE, math.exp)
    known = [value for value in values if not math.isnan(value)]
    if min(known) > 0 and max(known) / min(known) > 100:
        axes.set_yscale("log")
    return True


def draw_level(axes: Any, level: float, dashes: Any = "--") -> None:
    """A horizontal line, for a target or a reference."""
    axes.axhline(level, color=GREY, linestyle=dashes, linewidth=1)
