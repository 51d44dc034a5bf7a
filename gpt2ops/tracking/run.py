"""One MLflow run as a stage writes into it: what the store does not take waits beside it, on disk."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gpt2ops import paths
from gpt2ops.params.schema import Params
from gpt2ops.process.stage import say
from gpt2ops.tracking.journal import MetricBuffer, Point, SystemMetrics
from gpt2ops.tracking.link import Link
from gpt2ops.tracking.origin import UNKNOWN
from gpt2ops.tracking.outbox import TAG_LIMIT, Outbox
from gpt2ops.tracking.store import flatten, is_local, mlruns, one_line, redact, tracking_uri

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

_PARAM_LIMIT = 6000  # characters that MLflow keeps of a parameter
LEAVE_SECONDS = 3.0  # for a store to take the rest of a run that was interrupted


class TrackedRun:
    """One MLflow run. Nothing here stops a stage: where the store fails, what it was to be told waits in `spool/`."""

    def __init__(self, link: Link, spooled_as: str | None = None) -> None:
        """`spooled_as` is the id under which what it could not send waits, where that is another."""
        self._link = link
        key, spool, away = spooled_as or link.run_id, mlruns() / "spool", not link.is_open
        self._lock = lock_of(key)
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


def lock_of(run_id: str) -> "FileLock":
    """Held by the process that writes into a run."""
    from filelock import FileLock

    return FileLock(mlruns() / "spool" / f"{run_id}.lock")


def _param_values(params: Params) -> dict[str, str]:
    values = {}
    for key, value in flatten(params.model_dump(mode="json", by_alias=True)).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text = redact(text)
        values[key] = text if len(text) <= _PARAM_LIMIT else f"{text[: _PARAM_LIMIT - 1]}…"
    return values
