"""A chart of perplexities with their intervals: what overlaps widely may differ by luck."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gpt2ops.reporting.blocks import Figure, perplexity_text
from gpt2ops.reporting.charts import FONT_SIZE, GRID, INK, NARROW, WIDE, new_axes, svg
from gpt2ops.reporting.curves import BLUE, GREY

ROW = 0.34  # inches
TIE = 1e-5  # nats: below what another machine computes of the same model

Interval = tuple[str, float, float, float]  # name, low, value, high


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


def comparison_figure(comparison: Mapping[str, Any]) -> Figure | None:
    """The change of perplexity against the champion, from registered.json; None without an interval, and for a tie."""
    interval = comparison.get("interval")
    if not interval or max(map(abs, interval)) < TIE:
        return None
    low, value, high = (math.expm1(min(loss, 700.0)) for loss in (interval[0], comparison["difference"], interval[1]))
    if low <= 0 <= high:
        verdict = "The interval holds 0: the difference may be luck."
    else:
        word = "better" if high < 0 else "worse"
        verdict = f"The interval does not hold 0: this model is {word} by more than the luck of the text."
    words = (
        f"{_percent(value)} on the same {comparison['blocks']:,} blocks of held-out text, "
        f"{comparison['confidence']:.0%} interval {_percent(low)} to {_percent(high)}; less is better. {verdict}"
    )
    drawings = []
    for kind, width in (("wide", WIDE[0]), ("narrow", NARROW[0])):
        figure, axes = _rows([("This model", low, value, high)], width)
        axes.axvline(0, color=INK, linewidth=1)
        axes.margins(x=0.15)
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:+.3g}%" if share else "0%")
        axes.set_xlabel("change of perplexity against the champion", color=GREY, fontsize=FONT_SIZE)
        drawings.append(svg(figure, f"champion-{kind}", words))
    return Figure("Against the champion", words, words, *drawings)


def _percent(share: float) -> str:
    return f"{share:+.1%}" if abs(share) >= 0.0005 else f"{share:+.2%}"


def _draw(known: Sequence[Interval], kind: str, width: float, words: str) -> str:
    figure, axes = _rows(known, width)
    axes.xaxis.set_major_formatter(lambda value, _: perplexity_text(value).removesuffix(".0"))
    axes.set_xlabel("perplexity", color=GREY, fontsize=FONT_SIZE)
    return svg(figure, f"intervals-{kind}", words)


def _rows(known: Sequence[Interval], width: float) -> tuple[Any, Any]:
    """A row for each: the interval as a bar, the value as a point."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_axes((width, 0.6 + ROW * len(known)), right=0.97, left=1.2)
    for place, (_, low, value, high) in enumerate(reversed(known)):
        axes.plot([low, high], [place, place], color=BLUE, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot([value], [place], color=BLUE, marker="o", markersize=5, linestyle="none")
    axes.set_ylim(-0.6, len(known) - 0.4)
    axes.set_yticks(range(len(known)), [name for name, *_ in reversed(known)])
    axes.tick_params(axis="y", labelcolor=INK, labelsize=FONT_SIZE)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    return figure, axes
