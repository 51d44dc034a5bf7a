"""The MLflow run of a pipeline execution: `finetune` starts it, every later stage reopens it from models/run.json."""

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gpt2core.errors import UserError
from gpt2core.files import read_json
from tasks import paths
from tasks.params import Params, load_params
from tasks.reports import read_report
from tasks.stage import say
from tasks.tracking_buffer import MetricBuffer, Point, SystemMetrics
from tasks.tracking_download import BEST_CHECKPOINT, checkpoint_directory
from tasks.tracking_link import Link, begin, begun, known_run, waiting_runs
from tasks.tracking_origin import UNKNOWN, origin_tags
from tasks.tracking_outbox import TAG_LIMIT, Outbox
from tasks.tracking_store import (
    StoreAwayError,
    connect,
    experiment_id,
    flatten,
    is_away,
    is_local,
    mlruns,
    one_line,
    redact,
    remember_restored_run,
    tracking_uri,
)

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "BEST_CHECKPOINT",
    "TrackedRun",
    "evaluation_metrics",
    "link_cached_run",
    "registered_model_directory",
    "report_metrics",
    "start_run",
    "tracked_run",
    "tracking_uri",
]

_PARAM_LIMIT = 6000  # characters that MLflow keeps of a parameter
LEAVE_SECONDS = 3.0  # for a store to take the rest of a run that was interrupted
_RESUME_TAG = "resume_key"


class TrackedRun:
    """One MLflow run. Nothing here stops a stage: where the store fails, what it was to be told waits in `spool/`."""

    def __init__(self, link: Link, spooled_as: str | None = None) -> None:
        """`spooled_as` is the id under which what it could not send waits, where that is another."""
        self._link = link
        key, spool, away = spooled_as or link.run_id, mlruns() / "spool", not link.is_open
        self._lock = _lock_of(key)
        with suppress(TimeoutError):  # a second stage of this run is at work as well
            self._lock.acquire(timeout=0)
        self._outbox = Outbox(link.open, link.run_name, spool / key, failing=away)
        last_steps = link.last_steps if away else link.last_steps()
        self._buffer = MetricBuffer(self._write, spool / f"{key}.jsonl", last_steps, also=self._outbox.deliver)
        self._system: SystemMetrics | None = None

    @property
    def client(self) -> "MlflowClient":
        """Raises UserError where the store is away."""
        return self._link.open()[0]

    @property
    def run_id(self) -> str:
        """The store's id; while it is away, one that the store will not know, but this project."""
        return self._link.run_id

    @property
    def run_name(self) -> str:
        return self._link.run_name

    @property
    def experiment_id(self) -> str:
        """Empty while the store is away."""
        return self._link.experiment_id

    def record(self, experiment: str) -> dict[str, str]:
        """What models/run.json says of this run; no password and, for the local store, no place of this machine."""
        uri = f"sqlite:///{paths.MLRUNS.as_posix()}/mlflow.db" if is_local() else redact(tracking_uri())
        return {"run_id": self.run_id, "experiment": experiment, "tracking_uri": uri, "run_name": self.run_name}

    def begin(self, params: Params) -> None:
        """That it runs, again or for the first time, and with which parameters."""
        self._post("that it runs", {"do": "running"})
        self.log_params(params)

    def log_params(self, params: Params) -> None:
        """Every parameter, as `train.learning_rate`. MLflow never changes one: a later change goes to a tag."""
        self._post("parameters", {"do": "params", "params": _param_values(params)})

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None, timestamp: int | None = None) -> None:
        """Hand over metrics (microseconds; a thread sends them). `timestamp` in milliseconds since 1970."""
        self._buffer.add(metrics, step, timestamp)

    def log_text(self, text: str, artifact_file: str) -> None:
        self._post(artifact_file, {"do": "text", "text": text, "file": artifact_file})

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        self._post(str(path), {"do": "file", "path": str(path), "artifact_path": artifact_path})

    def log_settings(self) -> None:
        """params.yaml and dvc.lock, to the letter but for secrets: what `gpt2 rerun` starts from."""
        for file in (paths.PARAMS, paths.DVC_LOCK):
            if file.exists():
                self.log_text(redact(file.read_text(encoding="utf-8")), file.name)

    def log_artifacts(self, directory: Path, artifact_path: str | None = None) -> None:
        self._post(str(directory), {"do": "files", "path": str(directory), "artifact_path": artifact_path})

    def log_table(self, rows: Sequence[Mapping[str, Any]], artifact_file: str) -> None:
        """Rows of one shape as a table that MLflow's page shows; a table of that name is replaced, not continued."""
        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row[column] for column in columns] for row in rows]}
        self._post(artifact_file, {"do": "table", "text": json.dumps(table, ensure_ascii=False), "file": artifact_file})

    def artifacts(self) -> set[str]:
        """Names at the top of the run's artifacts; none where the store fails."""
        try:
            return {item.path for item in self.client.list_artifacts(self.run_id)}
        except Exception as error:  # requests, SQLAlchemy, boto and MLflow each raise their own
            say(f"tracking: warning: the artifacts of MLflow run {self.run_name} cannot be listed: {one_line(error)}")
            return set()

    def log_dataset(self, manifest: Mapping[str, Any], split: str) -> None:
        """The split as an MLflow dataset: name, digest, source, and its tokens and documents."""
        facts = manifest["splits"][split]
        source = redact(str(manifest.get("source") or UNKNOWN))
        dataset = {
            "name": f"{Path(source).name or source}-{split}"[:500],
            "digest": str(facts["sha256"])[:12],
            "source_type": "local",
            "source": json.dumps({"uri": source}),
            "profile": json.dumps({key: facts[key] for key in ("tokens", "documents", "sha256")}),
        }
        context = {"train": "training", "val": "validation"}.get(split, split)
        self._post(f"data set {split}", {"do": "dataset", "dataset": dataset, "context": context})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._post("tags", {"do": "tags", "tags": {key: str(value)[:TAG_LIMIT] for key, value in tags.items()}})

    def watch_system(self) -> None:
        """Log the machine's load until `finish`."""
        if self._system is None:
            self._system = SystemMetrics(self._buffer)

    def flush(self) -> bool:
        """Send what waits; False where the store fails and it waits on in the spool."""
        return self._buffer.flush()

    def secure(self) -> None:
        """Put what waits on the disk, without waiting for the store."""
        self._buffer.secure()
        self._outbox.secure()

    def finish(self, status: str = "FINISHED") -> None:
        """Flush, and set the status: FINISHED, FAILED, or KILLED for one that was interrupted."""
        if self._system is not None:
            self._system.stop()
            self._system = None
        message = {"do": "status", "status": status, "end_time": int(time.time() * 1000)}
        self._outbox.post("the status", message, wait=False)
        if status == "KILLED":
            self._leave()
        else:
            self._close()
        self.release()

    def _close(self) -> None:
        self._buffer.close()
        self._outbox.settle()

    def _leave(self) -> None:
        """Close, but let no store that is silent keep a process that was asked to leave."""
        self.secure()
        closing = threading.Thread(target=self._close, name="close-run", daemon=True)
        closing.start()
        closing.join(LEAVE_SECONDS)
        if closing.is_alive():
            self._buffer.abandon()
            say(f"tracking: MLflow does not answer; the rest waits in {mlruns() / 'spool'} for the next stage or run.")

    def release(self) -> None:
        """Others may send what waits."""
        self._lock.release()
        with suppress(OSError):
            Path(self._lock.lock_file).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _write(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
        client, run_id = self._link.open()
        client.log_batch(run_id, metrics=metrics)

    def _post(self, what: str, message: dict[str, Any]) -> None:
        # While it trains, a store that is slow to answer must not hold it up: the metrics' thread delivers.
        training = self._system is not None
        self._outbox.post(what, message, wait=not training)
        if training:
            if "path" in message:
                self._outbox.secure()  # as the file is now
            self._buffer.wake()


def start_run(
    params: Params, run_name: str | None = None, resume_run_id: str | None = None, resume_key: str | None = None
) -> TrackedRun:
    """The run of a training: a new one, or `resume_run_id` again where the store has it.

    `resume_key` says what makes it this training: one of that key that was killed before its first checkpoint is gone
    on with, too.

    It has every parameter, the tags that say where it came from, and the machine's load until `finish`.
    Where the store is away the run is begun without it, and made when it answers.
    Raises UserError where the store cannot be used.
    """
    tags = {_RESUME_TAG: _resume_tag(resume_key)} if resume_key else {}
    try:
        link = _link_of_training(params, run_name, resume_run_id, tags)
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
        if not is_away(error):
            raise
        _say_away("the training", error)
        known = Link(resume_run_id, run_name or "") if resume_run_id else begun(tags)
        link = known or begin(params.run.experiment, run_name or "", {**origin_tags(), **tags})
    tracked = TrackedRun(link)
    tracked.begin(params)
    tracked.log_settings()
    tracked.watch_system()
    return tracked


def _link_of_training(params: Params, run_name: str | None, resume_run_id: str | None, tags: Mapping[str, str]) -> Link:
    client = connect()
    deliver_leftovers(client)
    experiment = experiment_id(client, params.run.experiment)
    run = known_run(client, resume_run_id) if resume_run_id else _killed_run(client, experiment, tags)
    if run is None:
        run = client.create_run(experiment, run_name=run_name, tags={**origin_tags(), **tags})
    return Link.to(client, run)


def deliver_leftovers(client: "MlflowClient") -> None:
    """Send what runs that have ended could not send while the store was down."""
    for run_id in waiting_runs():
        lock = _lock_of(run_id)
        try:
            lock.acquire(timeout=0)  # else that run is at work
        except TimeoutError:
            continue
        lock.release()
        link = Link(run_id, run_id[:8], client)
        try:
            link.open()
        except LookupError:
            continue  # `gpt2 gc` clears away what belongs to no run
        except UserError as error:
            if is_away(error):
                raise
            say(f"tracking: warning: what waits for run {run_id[:8]} in {mlruns() / 'spool'} waits on: {error}")
            continue
        late = TrackedRun(link, spooled_as=run_id)
        if late.flush():
            say(f"tracking: what waited for MLflow run {late.run_name} has been sent.")
        late.release()


def _say_away(what: str, error: Exception) -> None:
    reason = error.reason if isinstance(error, StoreAwayError) else one_line(error)
    say(
        f"tracking: warning: MLflow at {redact(tracking_uri())} is away ({reason}); {what} goes on. What MLflow should "
        f"have waits in {mlruns() / 'spool'} and is sent when it answers, at the latest by the next stage or run."
    )


def _lock_of(run_id: str) -> "FileLock":
    """Held by the process that writes into a run."""
    from filelock import FileLock

    return FileLock(mlruns() / "spool" / f"{run_id}.lock")


@contextmanager
def tracked_run(*, wait: bool = True) -> Iterator[TrackedRun]:
    """The run that produced models/best, open again for a later stage.

    A run that this store has not (its results came by `dvc pull`) is made anew from the files, tagged `cached_from`;
    later stages share it. What is logged while the store is away waits; without `wait` that is an error.
    Raises UserError where models/run.json is missing or the store cannot be used.
    """
    record = _read_run_record()
    try:
        client = connect()
        deliver_leftovers(client)
        run = known_run(client, record["run_id"])
        tracked = _restore_run(client, record) if run is None else TrackedRun(Link.to(client, run))
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
        if not (wait and is_away(error)):
            raise
        _say_away("this stage", error)
        tracked = TrackedRun(Link(record["run_id"], record["run_name"]))
    tracked.begin(load_params())
    with tracked:
        yield tracked


def link_cached_run(run_id: str, flow_run_id: str) -> str:
    """A second run for a flow run whose inputs had not changed: parameters and final metrics of `run_id`, and a link.

    Returns its id. Raises UserError where the store cannot be used.
    """
    client = connect()
    from mlflow.entities import Metric, Param

    origin = known_run(client, run_id)
    tags = {**origin_tags(), "cached_from": run_id, "prefect_flow_run_id": flow_run_id}
    if origin is None:
        params = load_params()
        run = client.create_run(experiment_id(client, params.run.experiment), tags=tags)
        with TrackedRun(Link.to(client, run)) as tracked:
            tracked.log_params(params)
            tracked.log_metrics(report_metrics())
        return str(run.info.run_id)
    run = client.create_run(
        origin.info.experiment_id, run_name=f"{origin.info.run_name} (cached)", tags={**_own_tags(origin), **tags}
    )
    metrics = [
        Metric(metric.key, metric.value, metric.timestamp, metric.step)
        for metric in origin.data._metric_objs
        if not metric.key.startswith("system/")
    ]
    client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in origin.data.params.items()])
    for start in range(0, len(metrics), 1000):
        client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])
    client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def registered_model_directory(uri: str) -> Path:
    """The Hugging Face layout of a registered model, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    It is the best checkpoint of the run that registered it. Raises UserError where the model or the checkpoint is not.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise UserError(f"model.init ({uri!r}) must be models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, alias, version = match.groups()
    client = connect()
    from mlflow.exceptions import MlflowException

    try:
        entry = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, version)
    except MlflowException as error:
        raise UserError(f"model.init ({uri!r}) is not in {redact(tracking_uri())}: {one_line(error)}") from None
    return checkpoint_directory(client, str(entry.run_id), entry.tags.get("weights_sha256"), f"model.init ({uri!r})")


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
            metrics[f"evaluate/{split}_{name}"] = value
    for name in ("verbatim_recall", "generalisation_gap"):
        if evaluation.get(name) is not None:
            metrics[f"evaluate/{name}"] = evaluation[name]
    return metrics


def _read_run_record() -> dict[str, str]:
    try:
        record = read_json(paths.RUN)
        return {"run_id": str(record["run_id"]), "run_name": str(record.get("run_name") or "")}
    except FileNotFoundError:
        raise UserError(f"{paths.RUN} is missing: run the stage finetune first (`dvc repro finetune`).") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{paths.RUN} is damaged (no run_id in it): run `dvc repro --force finetune`.") from None


def _resume_tag(key: str) -> str:
    """The training `key` in this folder of this machine: others may share the store."""
    return hashlib.sha256(f"{socket.gethostname()}\0{Path.cwd()}\0{key}".encode()).hexdigest()[:16]


def _killed_run(client: "MlflowClient", experiment: str, tags: Mapping[str, str]) -> "Run | None":
    """The newest run with these tags, where it neither finished nor failed."""
    if not tags:
        return None
    condition = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment], condition, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0] if found and found[0].info.status in ("RUNNING", "KILLED") else None


def _restore_run(client: "MlflowClient", record: Mapping[str, str]) -> TrackedRun:
    params = load_params()
    tags = {**origin_tags(), "cached_from": record["run_id"]}
    name = record["run_name"] or None
    run = client.create_run(experiment_id(client, params.run.experiment), run_name=name, tags=tags)
    remember_restored_run(record["run_id"], str(run.info.run_id))
    say(
        f"tracking: run {record['run_id']} is not in this store; {run.info.run_name} ({run.info.run_id}) stands for it."
    )
    tracked = TrackedRun(Link.to(client, run))
    for row in read_json(paths.HISTORY) if paths.HISTORY.exists() else []:
        tracked.log_metrics({key: value for key, value in row.items() if key != "step"}, step=row["step"])
    tracked.log_metrics(report_metrics())
    return tracked


def _param_values(params: Params) -> dict[str, str]:
    values = {}
    for key, value in flatten(params.model_dump(mode="json", by_alias=True)).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text = redact(text)
        values[key] = text if len(text) <= _PARAM_LIMIT else f"{text[: _PARAM_LIMIT - 1]}…"
    return values


def _own_tags(run: "Run") -> dict[str, str]:
    """Tags of a run but for MLflow's bookkeeping, which belongs to that run alone."""
    return {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
