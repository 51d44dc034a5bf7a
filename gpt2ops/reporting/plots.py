"""The training curves as PNG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2core.storage.files import atomic_path
from gpt2ops.reporting.curves import CURVES, GREY, History, draw_curve, draw_level, draw_loss


def save_plots(history: History, metrics: Mapping[str, Any], directory: Path) -> None:
    """Write loss.png, and one file for each further curve that the run has."""
    import matplotlib

    matplotlib.use("Agg")
    _save_loss(history, metrics, directory / "loss.png")
    for key, label in CURVES.items():
        figure, axes = _new_axes(label)
        if draw_curve(axes, history, key):
            _save(figure, directory / f"{key}.png")


def _save_loss(history: History, metrics: Mapping[str, Any], path: Path) -> None:
    figure, axes = _new_axes("loss, nats per token")
    draw_loss(axes, history, metrics)
    if (target := metrics["target_loss"]) is not None:
        draw_level(axes, target)
        axes.annotate(
            f"target {target:g}",
            (0.0, target),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            color=GREY,
        )
    stop = "target reached" if metrics["target_reached"] else f"stopped by {metrics['stop_reason']}"
    axes.set_title(f"{metrics['n_params'] / 1e6:.1f} M parameters, {metrics['steps']:,} steps: {stop}")
    axes.legend(frameon=False)
    _save(figure, path)


def _new_axes(label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as partial:
        # Without the date and version that matplotlib adds, equal curves give equal files.
        figure.savefig(partial, format="png", metadata={"Software": None})
