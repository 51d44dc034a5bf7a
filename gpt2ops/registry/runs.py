"""The runs of the MLflow store for `gpt2 runs` and `gpt2 compare`: listed, found by id or name, compared."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpt2core.errors import UserError
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.process.redact import redact
from gpt2ops.registry.models import find_version, registered_versions, store_exists
from gpt2ops.store.address import tracking_uri
from gpt2ops.store.client import connect
from gpt2ops.store.errors import one_line
from gpt2ops.store.run_params import final_params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Entry

STATES = {"FINISHED": "done", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "running", "SCHEDULED": "waiting"}
# Metrics of which more is better; of all others less.
_MORE_IS_BETTER = ("accuracy", "tokens_per_second", "tokens_seen", "steps", "epochs")


@dataclass(frozen=True)
class Run:
    run_id: str
    name: str
    experiment: str
    state: str  # done | failed | stopped | running | waiting
    started: datetime  # in UTC
    seconds: float | None
    params: dict[str, str]
    metrics: dict[str, float]  # last values, without system metrics
    tags: dict[str, str]


def list_runs(*, experiment: str | None = None, limit: int | None = None, sort: str = "started") -> list[Run]:
    """Runs, newest first, or best first by the metric `sort`, those without it last.

    Raises UserError if there is no store or no such experiment.
    """
    client = _client()
    experiments = {str(found.experiment_id): str(found.name) for found in client.search_experiments()}
    chosen = [number for number, name in experiments.items() if experiment in (None, name)]
    if experiment is not None and not chosen:
        names = ", ".join(sorted(experiments.values()))
        raise UserError(f"--experiment ({experiment!r}) is unknown; the experiments are {names}.")
    order = ["attributes.start_time DESC"]
    if sort != "started":
        metric = metric_name(sort)
        order.insert(0, f"metrics.`{metric}` {'DESC' if any(word in metric for word in _MORE_IS_BETTER) else 'ASC'}")
    found = []
    for entry in _search(client, chosen, order):
        found.append(_as_run(entry, experiments))
        if len(found) == limit:
            break
    return found


def metric_name(word: str) -> str:
    """`evaluate/test_perplexity` for `test_perplexity`; MLflow's name for any other."""
    return f"evaluate/{word}" if re.match(r"test_|verbatim|generalisation", word) else word


def find_run(word: str) -> Run:
    """Find a run by id, start of the id, name, or registered model. Raises UserError if there is none, or several."""
    if word.startswith("models:/"):
        return find_run(find_version(word, registered_versions()).run_id)
    runs = list_runs()
    for matching in (
        [run for run in runs if run.run_id == word],
        [run for run in runs if run.name == word],
        [run for run in runs if len(word) >= 3 and run.run_id.startswith(word)],
    ):
        if len(matching) == 1:
            return matching[0]
        if matching:
            matches = ", ".join(f"{run.run_id[:8]} ({run.name}, {run.started:%d %b %H:%M})" for run in matching[:5])
            raise UserError(f"{word!r} matches {len(matching)} runs: {matches}; give more of the id.")
    raise UserError(f"no run {word!r} in {redact(tracking_uri())}; `gpt2 runs` lists them.")


def _client() -> "MlflowClient":
    if not store_exists():
        raise UserError(
            f"no runs here: {mlruns()} has no store. Go to the folder where you trained, set MLFLOW_TRACKING_URI, or "
            "start a run with `gpt2 finetune`."
        )
    return connect()


def _search(client: "MlflowClient", experiments: list[str], order: list[str]) -> Iterator["Entry"]:
    token = None
    while experiments:
        try:
            page = client.search_runs(experiments, order_by=order, page_token=token, max_results=500)
        except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
            raise UserError(f"cannot read the runs of {redact(tracking_uri())}: {one_line(error)}") from error
        yield from page
        token = page.token
        if not token:
            return


def _as_run(entry: "Entry", experiments: dict[str, str]) -> Run:
    info = entry.info
    seconds = (info.end_time - info.start_time) / 1000 if info.end_time and info.start_time else None
    return Run(
        run_id=str(info.run_id),
        name=str(info.run_name),
        experiment=experiments[str(info.experiment_id)],
        state=STATES.get(str(info.status), str(info.status).lower()),
        started=datetime.fromtimestamp((info.start_time or 0) / 1000, UTC),
        seconds=seconds,
        params=final_params(entry),
        metrics={key: value for key, value in entry.data.metrics.items() if not key.startswith("system/")},
        tags={key: value for key, value in entry.data.tags.items() if not key.startswith("mlflow.")},
    )


@dataclass(frozen=True)
class RunComparison:
    """Values of two runs as pairs (first, second), None if a run lacks the value."""

    params: dict[str, tuple[str | None, str | None]]  # those that differ
    metrics: dict[str, tuple[float | None, float | None]]  # all
    origin: dict[str, tuple[str | None, str | None]]  # data and code, all


# Tags on data and code.
ORIGIN = ("data_sha256", "code_version", "code_sha256", "git_commit", "git_dirty", "rerun_of")


def compare_runs(first: Run, second: Run) -> RunComparison:
    return RunComparison(
        params={key: pair for key, pair in _pairs(first.params, second.params).items() if pair[0] != pair[1]},
        metrics=_pairs(first.metrics, second.metrics),
        origin={key: (first.tags.get(key), second.tags.get(key)) for key in ORIGIN},
    )


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = [*first, *(key for key in second if key not in first)]
    return {key: (first.get(key), second.get(key)) for key in keys}
