"""What the curves claim: few points are not joined, and each loss says what it was measured on."""

from typing import Any

import pytest
from matplotlib.figure import Figure

from gpt2ops.reporting.curves import FEW_POINTS, draw_band, draw_curve, draw_loss

METRICS: dict[str, Any] = {"steps": 100, "eval_batches": 20, "train_loss_full": 4.25}


def history(evaluations: int) -> list[dict[str, Any]]:
    rows = [{"step": step, "train_loss": 5 - step / 100, "tokens_per_second": 1.0} for step in range(1, 101)]
    for number in range(1, evaluations + 1):
        rows[number * (100 // evaluations) - 1] |= {"val_loss": 6 - number / 10, "val_perplexity": 400.0 - number}
    return rows


def lines(metrics: dict[str, Any], evaluations: int) -> dict[str, Any]:
    axes = Figure().subplots()
    draw_loss(axes, history(evaluations), metrics)
    return {str(line.get_label()): line for line in axes.get_lines()}


@pytest.mark.parametrize("evaluations", [1, FEW_POINTS - 1, FEW_POINTS])
def test_few_points_have_markers_and_no_line(evaluations: int) -> None:
    few = evaluations < FEW_POINTS
    line = lines(METRICS, evaluations)["validation text, 20 batches"]
    assert (line.get_linestyle() == "None", line.get_marker()) == (few, "o")
    axes = Figure().subplots()
    assert draw_curve(axes, history(evaluations), "val_perplexity")
    assert (axes.get_lines()[0].get_linestyle() == "None") == few


def test_a_full_pass_is_a_point_of_its_own() -> None:
    found = lines(METRICS, 8)["training text without dropout, full pass"]
    assert (list(found.get_xdata()), list(found.get_ydata())) == ([METRICS["steps"]], [METRICS["train_loss_full"]])
    assert "training text without dropout, full pass" not in lines({**METRICS, "train_loss_full": None}, 8)


@pytest.mark.parametrize(
    ("recorded", "part"),
    [({"eval_batches": None}, "full pass"), ({"eval_batches": 1200}, "1,200 batches"), ({}, "a part of it")],
)
def test_the_legend_says_how_much_an_evaluation_scored(recorded: dict[str, Any], part: str) -> None:
    assert f"validation text, {part}" in lines({"steps": 100, **recorded}, 8)


@pytest.mark.parametrize("evaluations", [FEW_POINTS - 1, FEW_POINTS])
def test_the_band_is_as_wide_as_the_interval_of_the_validation_loss(evaluations: int) -> None:
    rows = history(evaluations)
    assert not draw_band(Figure().subplots(), rows, "#000000")
    for row in rows:
        if "val_loss" in row:
            row["val_loss_stderr"] = 0.1
    axes = Figure().subplots()
    assert draw_band(axes, rows, "#000000")
    (band,) = axes.collections
    heights = [point for path in band.get_paths() for point in path.vertices[:, 1]]
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert (min(heights), max(heights)) == pytest.approx((min(losses) - 0.196, max(losses) + 0.196))
