"""Stage `plot`: reports/training_history.json -> reports/plots/*.png."""

from pathlib import Path
from typing import Any

from gpt2core.files import atomic_path
from tasks import paths
from tasks.params import load_params
from tasks.reports import read_report, read_rows
from tasks.stage import run_stage, say
from tasks.tracking import tracked_run

# Okabe and Ito's colours, told apart by colour-blind readers as well.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
LABELS = {
    "val_perplexity": "perplexity, validation",
    "val_token_accuracy": "token accuracy, validation",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens a second",
}


def main() -> None:
    load_params()
    history = read_rows(paths.HISTORY, "finetune")
    metrics = read_report(
        paths.TRAIN_METRICS, "finetune", ("target_loss", "target_reached", "stop_reason", "n_params", "steps")
    )
    with tracked_run() as tracked:
        say("drawing the curves ...")
        draw_all(history, metrics, paths.PLOTS)
        tracked.log_artifacts(paths.PLOTS, "plots")


def draw_all(history: list[dict[str, Any]], metrics: dict[str, Any], directory: Path) -> None:
    """`loss.png`, and a plot for each further curve that the run has."""
    import matplotlib

    matplotlib.use("Agg")
    draw_loss(history, metrics, directory / "loss.png")
    for key, label in LABELS.items():
        steps, values = curve(history, key)
        if steps:
            draw_curve(steps, values, label, directory / f"{key}.png")


def draw_loss(history: list[dict[str, Any]], metrics: dict[str, Any], path: Path) -> None:
    """Training and validation loss over the steps, with target and stop."""
    figure, axes = new_axes("loss, nats a token")
    axes.plot(*curve(history, "train_loss"), color=BLUE, linewidth=1.2, label="training batches")
    for key, color, label in (
        ("train_eval_loss", GREEN, "training text, without dropout"),
        ("val_loss", ORANGE, "validation text"),
    ):
        steps, values = curve(history, key)
        if steps:
            axes.plot(steps, values, color=color, marker="o", markersize=3.5, label=label)
    if metrics["target_loss"] is not None:
        axes.axhline(metrics["target_loss"], color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            f"target {metrics['target_loss']:g}",
            (0.0, metrics["target_loss"]),
            xycoords=("axes fraction", "data"),
            xytext=(4, 3),
            textcoords="offset points",
            color=GREY,
        )
    axes.set_title(f"{metrics['n_params'] / 1e6:.1f} M parameters, {metrics['steps']:,} steps: {stop_text(metrics)}")
    axes.legend(frameon=False)
    save(figure, path)


def stop_text(metrics: dict[str, Any]) -> str:
    return "target reached" if metrics["target_reached"] else f"stopped by {metrics['stop_reason']}"


def draw_curve(steps: list[int], values: list[float], label: str, path: Path) -> None:
    figure, axes = new_axes(label)
    axes.plot(steps, values, color=BLUE, linewidth=1.2, marker="o" if len(steps) < 40 else None, markersize=3.5)
    if min(values) > 0 and max(values) / min(values) > 100:
        axes.set_yscale("log")
    save(figure, path)


def curve(history: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    rows = [row for row in history if row.get(key) is not None]
    return [row["step"] for row in rows], [row[key] for row in rows]


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
