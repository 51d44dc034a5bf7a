"""The reported run, the latest runs of its experiment and the champion, as MLflow has them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpt2ops.process.redact import redact
from gpt2ops.registry.scoring.coverage import certainty_text, split_score
from gpt2ops.store.address import tracking_uri
from gpt2ops.store.errors import one_line
from gpt2ops.store.run_params import final_params
from gpt2ops.tracking.api import TrackedRun

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

LAST_RUNS = 5
_MAX_SEARCHED = 40  # runs searched, because copies are skipped
# Settings that change neither a model nor its scores.
_IRRELEVANT = ("run.name", "run.experiment", "sample.", "register.")


@dataclass(frozen=True)
class OtherRun:
    """A row of the comparison. Losses in nats per token."""

    run_id: str
    name: str
    started_at: datetime | None
    link: str
    loss: float | None
    perplexity: float | None
    train_loss: float | None
    recall: float | None
    steps: int | None
    same_data: bool
    differing: list[tuple[str, str, str]]  # key, value in this run, value in the reported run
    champion: str | None = None  # the version that is champion
    certainty: str = ""  # of the perplexity: its interval, and what of the text was scored


@dataclass(frozen=True)
class Comparison:
    """`this` is the reported run; `others` are the latest runs, newest first, then the champion if it is older."""

    this: OtherRun | None = None
    others: list[OtherRun] = field(default_factory=list)
    tags: Mapping[str, str] = field(default_factory=dict)
    champion: str | None = None  # its version
    problem: str = ""


def compare(tracked: TrackedRun, model_name: str, held_out: str | None) -> Comparison:
    """Reads the MLflow store; if that fails, the result has only `problem`."""
    from mlflow.exceptions import MlflowException

    try:
        client = tracked.client
        this = client.get_run(tracked.run_id)
        found = client.search_runs(
            [tracked.experiment_id],
            "attributes.status = 'FINISHED'",
            max_results=_MAX_SEARCHED,
            order_by=["attributes.start_time DESC"],
        )
        champion = None
        try:
            champion = client.get_model_version_by_alias(model_name, "champion")
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        last = originals(found, this)[:LAST_RUNS]
        seen = {run.info.run_id for run in (this, *last)}
        if champion is not None and champion.run_id not in seen and (its_run := _run_of(tracked, champion)):
            last.append(its_run)
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
        return Comparison(problem=one_line(error))
    return Comparison(
        this=describe(this, this, held_out, champion),
        others=[describe(run, this, held_out, champion) for run in last],
        tags=this.data.tags,
        champion=str(champion.version) if champion else None,
    )


def originals(runs: Iterable["Run"], this: "Run") -> list["Run"]:
    """`runs` without `this`, and without cached copies of runs in the list."""
    runs = list(runs)
    known = {run.info.run_id for run in (*runs, this)}
    return [
        run for run in runs if run.info.run_id != this.info.run_id and run.data.tags.get("cached_from") not in known
    ]


def describe(run: "Run", this: "Run", held_out: str | None, champion: "ModelVersion | None") -> OtherRun:
    metrics, split = run.data.metrics, held_out or "train"
    score = split_score(metrics, split)
    steps = _finite(metrics.get("steps"))
    started = run.info.start_time
    return OtherRun(
        run_id=run.info.run_id,
        name=str(run.info.run_name),
        started_at=datetime.fromtimestamp(started / 1000, UTC) if started else None,
        link=run_link(run.info.experiment_id, run.info.run_id),
        loss=_finite(metrics.get(f"evaluate/{split}_loss")),
        perplexity=_finite(metrics.get(f"evaluate/{split}_perplexity")),
        train_loss=_finite(metrics.get("evaluate/train_loss")),
        recall=_finite(metrics.get("evaluate/verbatim_recall")),
        steps=int(steps) if steps is not None else None,
        same_data=run.data.tags.get("data_sha256") == this.data.tags.get("data_sha256"),
        differing=differing(final_params(run), final_params(this)),
        champion=str(champion.version) if champion and champion.run_id == run.info.run_id else None,
        certainty=certainty_text(score),
    )


def differing(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Parameters with different values: key, value in the other run, value in this run."""
    return [
        (key, theirs.get(key, "-"), ours.get(key, "-"))
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and not key.startswith(_IRRELEVANT)
    ]


def run_link(experiment_id: str, run_id: str) -> str:
    """The run's page on a tracking server; empty for a local store, which has no address."""
    uri = redact(tracking_uri())
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}" if uri.startswith("http") else ""


def _run_of(tracked: TrackedRun, champion: "ModelVersion") -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        return tracked.client.get_run(str(champion.run_id))
    except MlflowException:  # permanently deleted
        return None


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
