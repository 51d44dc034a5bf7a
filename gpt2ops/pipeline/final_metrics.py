"""The numbers of a finished run's reports, as its MLflow run has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2ops.pipeline import paths
from gpt2ops.pipeline.results import read_report


def report_metrics(project: Path = Path()) -> dict[str, float]:
    """Final metrics from the reports: train.json's names, and `evaluate/<split>_<name>` from evaluate.json."""
    metrics: dict[str, Any] = {}
    if (project / paths.TRAIN_METRICS).exists():
        metrics.update(read_report(project / paths.TRAIN_METRICS, "finetune", ()))
    if (project / paths.EVALUATE_METRICS).exists():
        metrics.update(evaluation_metrics(read_report(project / paths.EVALUATE_METRICS, "evaluate", ())))
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def evaluation_metrics(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of evaluate.json, as MLflow metrics in one group."""
    metrics: dict[str, float] = {}
    for split in ("train", "val", "test"):
        scores = evaluation.get(split)
        for name, value in scores.items() if isinstance(scores, dict) else ():
            if isinstance(value, int | float):
                metrics[f"evaluate/{split}_{name}"] = value
    if found := evaluation.get("forgetting"):
        for name in ("loss_before", "loss_after", "loss_increase"):
            metrics[f"evaluate/control_{name}"] = found[name]
    for name in ("verbatim_recall", "generalisation_gap"):
        if evaluation.get(name) is not None:
            metrics[f"evaluate/{name}"] = evaluation[name]
    return metrics
