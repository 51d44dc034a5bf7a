"""What the reports of a run hold and the store lacks: points of a process whose store and spool shared a full disk.

A training's rows are in reports/training_history.json, final metrics in reports/metrics/.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2ops.pipeline import paths
from gpt2ops.pipeline.final_metrics import report_metrics
from gpt2ops.pipeline.results import read_rows
from gpt2ops.tracking.journal import Point, is_metric

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Stored = Mapping[int, int]  # of one metric: step -> the latest timestamp


def reported_rows(project: Path = Path()) -> dict[str, dict[int, float]]:
    """Metric -> step -> value of the training's rows; none before the end of a training.

    Raises UserError where the file is damaged.
    """
    found: dict[str, dict[int, float]] = {}
    file = project / paths.HISTORY
    for row in read_rows(file, "finetune") if file.exists() else []:
        for key, value in row.items():
            if key != "step" and is_metric(value):
                found.setdefault(key, {})[int(row["step"])] = float(value)
    return found


def missing_points(client: "MlflowClient", run: "Run", *, every_step: bool) -> list[Point]:
    """The points of the training's rows and of its final metrics that the store lacks, in the order to send them.

    Without `every_step` only metrics whose last step is missing are looked at: one request in all where none is.
    With it also `evaluate/*`, whose report belongs to this run only once all stages have run.
    """
    latest = {metric.key: metric for metric in run.data._metric_objs}
    found: list[Point] = []
    last = {key: int(metric.step) for key, metric in latest.items()}
    for key, values in reported_rows().items():
        if not every_step and last.get(key, -1) >= max(values):
            continue
        stored: dict[int, int] = {}
        for metric in client.get_metric_history(run.info.run_id, key) if key in latest else ():
            stored[metric.step] = max(metric.timestamp, stored.get(metric.step, 0))
        found += _missing(key, values, stored, int(run.info.start_time))
        last[key] = max(last.get(key, -1), *values)
    at_last_step = {point.key for point in found if point.step == last[point.key]}
    now = int(time.time() * 1000)
    for key, value in report_metrics().items():
        there = key in latest and latest[key].value == value and key not in at_last_step
        if is_metric(value) and not there and (every_step or not key.startswith("evaluate/")):
            found.append(Point(key, float(value), now, max(last.get(key, 0), 0)))
    return found


def _missing(key: str, values: Mapping[int, float], stored: Stored, began: int) -> Iterator[Point]:
    """Each with the time of the step before it."""
    moment = began
    for step in sorted({*values, *stored}):
        if step in stored:
            moment = max(moment, stored[step])
        else:
            yield Point(key, values[step], moment, step)
