"""The charts of the report: SVG by matplotlib, with CSS variables as colours, so that they follow dark mode."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from gpt2ops.reporting.blocks import Figure, duration_text, loss_text, perplexity_text, share_text
from gpt2ops.reporting.curves import (
    BLUE,
    CURVES,
    GREEN,
    GREY,
    ORANGE,
    History,
    curve,
    draw_curve,
    draw_level,
    draw_loss,
    loss_lines,
    scored_part,
)

INK, GRID = "#222222", "#dddddd"
VARIABLES = {
    BLUE: "var(--blue)", ORANGE: "var(--orange)", GREEN: "var(--green)", GREY: "var(--muted)",
    INK: "var(--ink)", GRID: "var(--grid)",
}  # fmt: skip
WIDE, NARROW, SMALL = (8.0, 3.3), (4.4, 3.3), (4.0, 2.4)  # inches; a page shows about 100 pixels per inch
FONT_SIZE = 8.5  # points
LINE_OF_TEXT = 11.0
LABEL_ROOM = 1.2  # inches
STOPS = {
    "target_loss": "the target loss was reached",
    "patience": "there was no new best for train.stop.patience evaluations",
    "max_steps": "train.stop.max_steps was reached",
    "max_epochs": "train.stop.max_epochs was reached",
}
SCORED = {
    "train_eval_loss": "training text without dropout (dotted)",
    "val_loss": "validation text (dashed)",
}
UNITS: dict[str, tuple[str, Callable[[float], str]]] = {
    "val_perplexity": ("Perplexity, validation", perplexity_text),
    "val_token_accuracy": ("Token accuracy, validation", lambda value: share_text(value, 1)),
    "learning_rate": ("Learning rate", lambda value: f"{value:.2g}"),
    "grad_norm": ("Gradient norm, before clipping", lambda value: f"{value:.2f}"),
    "tokens_per_second": ("Tokens per second", lambda value: f"{value:,.0f}"),
}


def loss_figure(
    history: History, train: Mapping[str, Any], references: Sequence[tuple[str, float]], metric: str
) -> Figure | None:
    """The losses with target, references and best step; None if no loss was finite.

    `references` are (name, loss), drawn if they are near the curves. `metric` is the one that the target is for.
    """
    if not any(curve(history, line.key)[0] for line in loss_lines(train)):
        return None
    words = _loss_words(history, train, metric)
    drawings = []
    for name, size in (("wide", WIDE), ("narrow", NARROW)):
        figure, axes = new_axes(size, right=1 - LABEL_ROOM / size[0])
        drawn = draw_loss(axes, history, train)
        labels = [(f"{line.short} {loss_text(last)}", last, line.color) for line, last in drawn]
        _set_step_axis(axes, history)
        labels += _levels(axes, train.get("target_loss"), references)
        _mark_best(axes, history, train)
        _label_lines(axes, labels, size)
        drawings.append(svg(figure, f"loss-{name}", words))
    return Figure("Loss, nats per token", words, words, *drawings)


def small_figures(history: History, train: Mapping[str, Any]) -> list[Figure]:
    """A small chart of each other quantity in the history."""
    figures = []
    for key in CURVES:
        title, written = UNITS[key]
        figure, axes = new_axes(SMALL, right=0.97)
        if not draw_curve(axes, history, key):
            continue
        steps, values = curve(history, key)
        known = [value for value in values if not math.isnan(value)]
        _format_y_axis(axes, key, known)
        _set_step_axis(axes, history)
        if len(known) == 1:
            words = f"{written(known[0])} at step {steps[-1]:,}."
        else:
            words = (
                f"From {written(known[0])} to {written(known[-1])}; lowest {written(min(known))}, "
                f"highest {written(max(known))}."
            )
        drawing = svg(figure, key, f"{title} over the steps. {words}")
        figures.append(Figure(title, words, words, drawing, drawing))
    return figures


def _loss_words(history: History, train: Mapping[str, Any], metric: str) -> str:
    """The caption, also the text alternative for screen readers."""
    steps, values = curve(history, "train_loss")
    known = [(step, value) for step, value in zip(steps, values, strict=True) if not math.isnan(value)]
    parts = []
    if known:
        (_, first), (_, last) = known[0], known[-1]
        parts.append(
            f"The loss of the training batches (solid; the mean of each interval, with dropout) went from {first:.2f} "
            f"to {last:.2f} in {train['steps']:,} steps."
        )
    scored = [name for key, name in SCORED.items() if curve(history, key)[0]]
    if scored:
        parts.append(f"Scored on {' and '.join(scored)} at each evaluation ({scored_part(train)} of each).")
    if any(row.get("val_loss_stderr") is not None for row in history):
        parts.append("The band is the 95% interval of the validation loss, by the luck of the text.")
    if train.get("train_loss_full") is not None:
        parts.append(
            f"A full pass over the training text without dropout gave {train['train_loss_full']:.2f} (diamond)."
        )
    if train.get("best_val_loss") is not None:
        at = f" at step {train['best_step']:,}" if train.get("best_by") == "val_loss" and train.get("best_step") else ""
        parts.append(f"The lowest validation loss is {train['best_val_loss']:.2f}{at}.")
    if train.get("best_step") is not None:
        parts.append(f"The saved model is that of step {train['best_step']:,} (ring).")
    target = train.get("target_loss")
    against = f" (target {target:g} on {metric})" if target is not None else ""
    parts.append(f"Training stopped because {STOPS.get(train['stop_reason'], train['stop_reason'])}{against}")
    end = f", after {duration_text(train.get('wall_seconds'))}."
    if (step := train.get("extended_at")) is not None:
        end += f" Until step {step:,} another length was planned: one run of this length gives other weights."
    return " ".join(parts) + end


def _levels(axes: Any, target: float | None, references: Sequence[tuple[str, float]]) -> list[tuple[str, float, str]]:
    """Horizontal lines; returns their labels. A reference far from the curves is not drawn: it would squeeze them."""
    low, high = axes.get_ylim()
    labels = []
    if target is not None:
        draw_level(axes, target)
        labels.append((f"target {target:g}", target, GREY))
    for name, level in references:
        if low <= level <= high + 0.1 * (high - low):
            draw_level(axes, level, (0, (1, 2)))
            labels.append((f"{name} {loss_text(level)}", level, GREY))
    return labels


def _mark_best(axes: Any, history: History, train: Mapping[str, Any]) -> None:
    """A ring around the loss of the saved model."""
    row = next((row for row in history if row["step"] == train.get("best_step")), {})
    value = row.get("train_eval_loss" if train.get("best_by") == "train_loss" else "val_loss")
    if value is not None:
        axes.plot([row["step"]], [value], marker="o", markersize=9, fillstyle="none", color=INK, markeredgewidth=1.1)


def _label_lines(axes: Any, labels: Sequence[tuple[str, float, str]], size: tuple[float, float]) -> None:
    """Label each line at its end, without overlaps."""
    low, high = axes.get_ylim()
    height = axes.get_position().height * size[1] * 72  # points
    places: list[float] = []
    for _, level, _ in sorted(labels, key=lambda label: label[1]):
        place = (level - low) / (high - low) * height
        places.append(max(place, places[-1] + LINE_OF_TEXT) if places else place)
    over = max(0.0, places[-1] - height) if places else 0.0
    for number, place in reversed(list(enumerate(places))):  # labels above the chart move down again
        ceiling = places[number + 1] - LINE_OF_TEXT if number + 1 < len(places) else place - over
        places[number] = min(place, ceiling)
    for (text, _, color), place in zip(sorted(labels, key=lambda label: label[1]), places, strict=True):
        axes.annotate(
            text, (1.0, place / height), xycoords="axes fraction", xytext=(7, 0), textcoords="offset points",
            va="center", color=color, annotation_clip=False,
        )  # fmt: skip


def new_axes(size: tuple[float, float], right: float, left: float = 0.55) -> tuple[Any, Any]:
    """Axes over steps, `left` inches from the left, up to the share `right` of the width."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=size)
    left, bottom = left / size[0], 0.42 / size[1]
    axes = figure.add_axes((left, bottom, right - left, 1 - bottom - 0.12 / size[1]))
    axes.set_xlabel("step", color=GREY, fontsize=FONT_SIZE)
    axes.tick_params(color=GRID, labelcolor=GREY, labelsize=FONT_SIZE, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.xaxis.set_major_locator(_integer_locator())
    return figure, axes


def _set_step_axis(axes: Any, history: History) -> None:
    """The same x axis in every chart of the run."""
    last = max(row["step"] for row in history)
    axes.set_xlim(0, last * 1.01 + 0.01)


def _format_y_axis(axes: Any, key: str, known: Sequence[float]) -> None:
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    if key in ("tokens_per_second", "grad_norm") and axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)  # from zero, so that a dip is not exaggerated
    if key == "val_token_accuracy":
        axes.yaxis.set_major_formatter(
            PercentFormatter(1.0, decimals=0 if max(known) - min(known) > 0.1 else 1, symbol="%")
        )
        axes.locator_params(axis="y", nbins=5)
    elif max(known) >= 1000 and axes.get_yscale() == "linear":
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _integer_locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10])


def svg(figure: Any, name: str, words: str) -> str:
    """The figure as an HTML element. Equal curves give equal text; `name` makes the ids unique in the page."""
    import matplotlib

    # Text, not outlines: for screen readers, copying, and the font of the page.
    settings: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": FONT_SIZE}
    with matplotlib.rc_context(settings):
        text = io.StringIO()
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    svg = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, variable)
    head = f'<svg role="img" aria-label="{escape(words)}" class="chart"'
    return re.sub(r"\n\s*", " ", svg.replace("<svg", head, 1)).strip()


def printable(svg: str, font: str) -> str:
    """The SVG for a PDF: colours in place of CSS variables, and the font `font`."""
    for color, variable in VARIABLES.items():
        svg = svg.replace(variable, color)
    return svg.replace("var(--font)", f"'{font}'")
