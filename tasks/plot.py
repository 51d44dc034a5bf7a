"""Stage `plot`: reports/training_history.json -> reports/plots/*.png."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

from pathlib import Path
from typing import Any

from gpt2core.storage.directories import replaced_directory
from gpt2core.storage.files import atomic_path
from gpt2ops import paths
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline.results import read_report, read_rows
from gpt2ops.process.stage import run_stage, say
from gpt2ops.reporting.curves import CURVES, GREY, draw_curve, draw_level, draw_loss, stop_text
from gpt2ops.tracking.api import tracked_run


def main() -> None:
    load_params()
    history = read_rows(paths.HISTORY, "finetune")
    metrics = read_report(
        paths.TRAIN_METRICS, "finetune", ("target_loss", "target_reached", "stop_reason", "n_params", "steps")
    )
    with tracked_run() as tracked:
        say("drawing the curves ...")
        with replaced_directory(paths.PLOTS) as plots:
            draw_all(history, metrics, plots)
        tracked.log_artifacts(paths.PLOTS, "plots")


def draw_all(history: list[dict[str, Any]], metrics: dict[str, Any], directory: Path) -> None:
    """`loss.png`, and a plot for each further curve that the run has."""
    import matplotlib

    matplotlib.use("Agg")
    plot_loss(history, metrics, directory / "loss.png")
    for key, label in CURVES.items():
        figure, axes = new_axes(label)
        if draw_curve(axes, history, key):
            save(figure, directory / f"{key}.png")


def plot_loss(history: list[dict[str, Any]], metrics: dict[str, Any], path: Path) -> None:
    """Training and validation loss over the steps, with target and stop."""
    figure, axes = new_axes("loss, nats a token")
    draw_loss(axes, history)
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
    axes.set_title(f"{metrics['n_params'] / 1e6:.1f} M parameters, {metrics['steps']:,} steps: {stop_text(metrics)}")
    axes.legend(frameon=False)
    save(figure, path)


def new_axes(label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    with atomic_path(path) as partial:
        # Without the date and version that matplotlib adds, equal curves give equal files.
        figure.savefig(partial, format="png", metadata={"Software": None})


if __name__ == "__main__":
    run_stage("plot", main)
