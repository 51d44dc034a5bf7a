"""A chart of perplexities with their intervals: what overlaps widely may differ by luck."""

from collections.abc import Mapping, Sequence
from typing import Any

from gpt2ops.reporting.blocks import Figure, perplexity_text
from gpt2ops.reporting.charts import FONT_SIZE, GRID, INK, NARROW, WIDE, new_axes, svg
from gpt2ops.reporting.curves import BLUE, GREY

ROW = 0.34  # inches


def interval_figure(columns: Sequence[tuple[str, Mapping[str, Any]]]) -> Figure | None:
    """Each score of `columns`, by name, as a point with its interval; None where no score has one."""
    known = [
        (name, score["perplexity_low"], score["perplexity"], score["perplexity_high"])
        for name, score in columns
        if score.get("perplexity_low") is not None and score.get("perplexity_high") is not None
    ]
    if not known:
        return None
    words = " ".join(
        f"{name}: {perplexity_text(value)}, from {perplexity_text(low)} to {perplexity_text(high)}."
        for name, low, value, high in known
    )
    drawings = [_draw(known, kind, width, words) for kind, width in (("wide", WIDE[0]), ("narrow", NARROW[0]))]
    return Figure("Perplexity with its 95% interval", words, words, *drawings)


def _draw(known: Sequence[tuple[str, float, float, float]], kind: str, width: float, words: str) -> str:
    figure, axes = new_axes((width, 0.6 + ROW * len(known)), right=0.97, left=1.9)
    for place, (name, low, value, high) in enumerate(reversed(known)):
        color = GREY if "before" in name else BLUE
        axes.plot([low, high], [place, place], color=color, linewidth=4, alpha=0.35, solid_capstyle="butt")
        axes.plot([value], [place], color=color, marker="o", markersize=5, linestyle="none")
    axes.set_ylim(-0.6, len(known) - 0.4)
    axes.set_yticks(range(len(known)), [name for name, *_ in reversed(known)])
    axes.tick_params(axis="y", labelcolor=INK, labelsize=FONT_SIZE)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    values = [value for row in known for value in row[1:]]
    if max(values) > 20 * min(values):
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: perplexity_text(value).removesuffix(".0"))
    axes.set_xlabel("perplexity", color=GREY, fontsize=FONT_SIZE)
    return svg(figure, f"intervals-{kind}", words)
