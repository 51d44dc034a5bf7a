"""A run's parameters: MLflow keeps the first value of each, and a tag of ours those that changed later."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Run

CHANGED_LATER_TAG = "params_changed_later"


def final_params(run: "Run") -> dict[str, str]:
    """The parameters at the end of the run."""
    try:
        return {**run.data.params, **json.loads(run.data.tags.get(CHANGED_LATER_TAG, "{}"))}
    except ValueError:  # MLflow truncates long tags
        return dict(run.data.params)
