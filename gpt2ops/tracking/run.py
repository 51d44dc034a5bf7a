"""One MLflow run as a stage writes to it."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from gpt2ops.params.keys import flatten
from gpt2ops.params.schema import Params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.run_origin import UNKNOWN
from gpt2ops.process.console import say
from gpt2ops.process.redact import redact
from gpt2ops.process.system_metrics import SystemMetrics
from gpt2ops.store.address import is_local, tracking_uri
from gpt2ops.store.errors import one_line
from gpt2ops.tracking.journal import NEXT, Journal, Point, open_journal, spool
from gpt2ops.tracking.link import RunLink
from gpt2ops.tracking.sender import TAG_LIMIT, Sender

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PARAM_LIMIT = 6000  # characters that MLflow keeps of a parameter
LEAVE_SECONDS = 3.0  # for a store to take the rest of a run that was interrupted


class TrackedRun:
    """One MLflow run. Nothing here stops a stage: while the store fails, records wait in `mlruns/spool/`."""

    def __init__(self, link: RunLink, journal: Journal | None = None) -> None:
        """`journal` where it is not the one of the link's id, or open already."""
        self._link = link
        self._journal = journal or open_journal(link.run_id)
        if link.is_open:
            self._journal.resolve(link.last_steps())
        self._sender = Sender(self._journal, link, failing=not link.is_open)
        self._system: SystemMetrics | None = None

    @property
    def client(self) -> "MlflowClient":
        """Raises UserError where the store is away."""
        return self._link.open(self._journal.plan)[0]

    @property
    def run_id(self) -> str:
        """The store's id; while the store is away, an id that only this project knows."""
        return self._link.run_id

    @property
    def run_name(self) -> str:
        return self._link.run_name

    @property
    def experiment_id(self) -> str:
        """Empty while the store is away."""
        return self._link.experiment_id

    def record(self, experiment: str) -> dict[str, str]:
        """What models/run.json says of this run: without a password and, for the local store, any absolute path."""
        uri = f"sqlite:///{paths.MLRUNS.as_posix()}/mlflow.db" if is_local() else redact(tracking_uri())
        return {"run_id": self.run_id, "experiment": experiment, "tracking_uri": uri, "run_name": self.run_name}

    def begin(self, params: Params) -> None:
        """Set the status RUNNING, and the parameters."""
        self._post("that it runs", {"do": "running"})
        self.log_params(params)

    def log_params(self, params: Params) -> None:
        """Every parameter, as `train.learning_rate`. MLflow never changes a parameter: a later change goes to a tag."""
        self._post("parameters", {"do": "params", "params": _param_values(params)})

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None, timestamp: int | None = None) -> None:
        """Append metrics (microseconds; a thread sends them). `timestamp` in milliseconds since 1970."""
        self._journal.add(metrics, step, timestamp)
        self._sender.start()

    def log_points(self, points: Iterable[Point]) -> None:
        """Append points as they are, where the store lacks them within a metric's history."""
        self._journal.put(points)
        self._sender.start()

    def log_text(self, text: str, artifact_file: str) -> None:
        self._post(artifact_file, {"do": "text", "text": text, "file": artifact_file})

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        self._post(str(path), {"do": "file", "path": str(path.absolute()), "artifact_path": artifact_path})

    def log_settings(self) -> None:
        """params.yaml and dvc.lock, unchanged except for secrets: what `gpt2 rerun` starts from."""
        for file in (paths.PARAMS, paths.DVC_LOCK):
            if file.exists():
                self.log_text(redact(file.read_text(encoding="utf-8")), file.name)

    def log_artifacts(self, directory: Path, artifact_path: str | None = None) -> None:
        self._post(str(directory), {"do": "files", "path": str(directory.absolute()), "artifact_path": artifact_path})

    def log_table(self, rows: Sequence[Mapping[str, Any]], artifact_file: str) -> None:
        """Rows with equal keys as a table that MLflow's page shows; an earlier table of that name is replaced."""
        columns = list(rows[0]) if rows else []
        table = {"columns": columns, "data": [[row[column] for column in columns] for row in rows]}
        self._post(artifact_file, {"do": "table", "text": json.dumps(table, ensure_ascii=False), "file": artifact_file})

    def artifacts(self) -> set[str]:
        """Top-level names of the run's artifacts; none where the store fails."""
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
            self._sender.start()
            self._system = SystemMetrics(lambda metrics: self._journal.add(metrics, NEXT))

    def flush(self) -> bool:
        """Send what waits; False where the store fails: then it is on the disk."""
        return self._sender.deliver()

    def secure(self) -> None:
        """Put what waits on the disk, without waiting for the store."""
        self._journal.secure()

    def finish(self, status: str = "FINISHED") -> None:
        """Send the rest, and the status: FINISHED, FAILED, or KILLED for a run that was interrupted."""
        if self._system is not None:
            self._system.stop()
            self._system = None
        end_time = int(time.time() * 1000)
        self._journal.post({"do": "status", "what": "the status", "status": status, "end_time": end_time})
        if not self._sender.close(LEAVE_SECONDS if status == "KILLED" else None):
            say(f"tracking: MLflow does not answer; the rest waits in {spool()} for the next stage or run.")
        if lost := self._journal.unsaved():
            say(
                f"tracking: warning: {lost} records of MLflow run {self.run_name} are lost when this process ends: "
                "neither MLflow nor the disk takes them. Free disk space: the next stage sends again what reports/ has."
            )
        self._journal.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _post(self, what: str, message: dict[str, Any]) -> None:
        self._journal.post({**message, "what": what})
        if self._system is None:
            self._sender.deliver_or_keep()
        elif "path" in message:  # in a training the thread delivers: a slow store must not delay a step
            self._journal.secure()  # a copy of the file as it is now


def _param_values(params: Params) -> dict[str, str]:
    values = {}
    for key, value in flatten(params.model_dump(mode="json", by_alias=True)).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text = redact(text)
        values[key] = text if len(text) <= _PARAM_LIMIT else f"{text[: _PARAM_LIMIT - 1]}…"
    return values
