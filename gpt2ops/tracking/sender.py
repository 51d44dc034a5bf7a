"""Delivers a run's journal to MLflow: in order, in batches, by a thread of its own or at once."""

import atexit
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2ops.process.console import say
from gpt2ops.store.errors import is_away, one_line
from gpt2ops.store.run_params import CHANGED_LATER_TAG
from gpt2ops.tracking.journal import Journal, Point, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from gpt2ops.tracking.link import RunLink

TAG_LIMIT = 5000  # characters that MLflow keeps of a tag
_BATCH_LIMIT = 1000  # metrics that MLflow takes in one `log_batch`
_TABLES_TAG = "mlflow.loggedArtifacts"
# After a failure nobody waits for the store again so soon: each try may take as long as its time-out.
_PAUSE_SECONDS = 10.0
# The store has understood, and will never take it.
_REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "PERMISSION_DENIED"}
_ARTIFACTS = {"file", "files", "text", "table"}


class Sender:
    """Delivers what waits in `journal` to the run of `link`; where that fails, it waits on, on the disk."""

    def __init__(
        self,
        journal: Journal,
        link: "RunLink",
        *,
        failing: bool = False,
        interval_seconds: float = 3.0,
        warn: Callable[[str], None] = say,
    ) -> None:
        """`failing` where it is known, and has been said, that the store is away."""
        self._journal, self._link, self._warn = journal, link, warn
        self.interval_seconds = interval_seconds
        self._failing, self._failed_at = failing, time.monotonic() if failing else -_PAUSE_SECONDS
        self._delivering, self._closed = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def deliver(self) -> bool:
        """Send what waits; False where something is left."""
        with self._delivering:
            if not self._journal.waiting():
                return True
            try:
                client, run_id = self._link.open(self._journal.plan)
                if not self._journal.is_resolved:
                    self._journal.resolve(self._link.last_steps())
            except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
                return self._fail(error)
            delivered, failure = self._send(client, run_id, self._journal.waiting())
            self._journal.drop(delivered)
            if failure is not None:
                return self._fail(failure)
            if self._failing:
                self._failing = False
                self._warn(
                    f"tracking: MLflow answers again; {len(delivered)} records of {self._link.run_name} were sent."
                )
            self._failed_at = -_PAUSE_SECONDS
            return True

    def deliver_or_keep(self) -> None:
        """Deliver; right after a failure only put it on the disk."""
        if time.monotonic() - self._failed_at < _PAUSE_SECONDS:
            self._journal.secure()
        else:
            self.deliver()

    def start(self) -> None:
        """Deliver every few seconds from now on, and when the process ends."""
        if self._thread is None:
            self._closed.clear()
            self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def close(self, seconds: float | None = None) -> bool:
        """Deliver the rest and stop the thread; False where that takes longer than `seconds`: it is on the disk."""
        self._closed.set()
        atexit.unregister(self.close)
        if seconds is None:
            self._finish()
            return True
        self._journal.secure()
        closing = threading.Thread(target=self._finish, name="tracking-close", daemon=True)
        closing.start()
        closing.join(seconds)
        return not closing.is_alive()

    def _finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.deliver()

    def _run(self) -> None:
        while not self._closed.wait(self.interval_seconds):
            self.deliver()

    def _send(self, client: "MlflowClient", run_id: str, records: list[Record]) -> tuple[set[int], Exception | None]:
        """The positions of what MLflow has now, and the last error of what it has not."""
        delivered: set[int] = set()
        failure: Exception | None = None
        for start, batch in _batches(records):
            try:
                _perform(client, run_id, batch)
            except Exception as error:  # requests, SQLAlchemy, boto and MLflow each raise their own
                first = batch[0]
                if isinstance(first, dict) and _is_refused(error):
                    what = f"MLflow run {self._link.run_name} refuses {first['what']}"
                    self._warn(f"tracking: warning: {what}: {one_line(error)}")
                else:
                    failure = error
                    if isinstance(first, dict) and first["do"] in _ARTIFACTS and not is_away(error):
                        continue  # artifacts may lie in a store of their own
                    break
            delivered.update(range(start, start + len(batch)))
        return delivered, failure

    def _fail(self, error: Exception) -> bool:
        self._failed_at = time.monotonic()
        self._journal.secure()
        if not self._failing:
            self._failing = True
            self._warn(
                f"tracking: warning: MLflow does not take what is logged to {self._link.run_name} ({one_line(error)}); "
                f"the stage continues. It waits in {self._journal.file.parent} and is sent when MLflow answers, at the "
                "latest by the next stage or run."
            )
        return False


def _batches(records: Sequence[Record]) -> Iterator[tuple[int, Sequence[Record]]]:
    """Neighbouring points together, messages one by one, each with the position of its first record."""
    start = 0
    while start < len(records):
        end = start + 1
        if isinstance(records[start], Point):
            limit = min(start + _BATCH_LIMIT, len(records))
            while end < limit and isinstance(records[end], Point):
                end += 1
        yield start, records[start:end]
        start = end


def _perform(client: "MlflowClient", run_id: str, batch: Sequence[Record]) -> None:
    from mlflow.entities import Metric

    if isinstance(batch[0], dict):
        _perform_message(client, run_id, batch[0])
    else:
        points = [point for point in batch if isinstance(point, Point)]
        client.log_batch(run_id, [Metric(point.key, point.value, point.timestamp, point.step) for point in points])


def _perform_message(client: "MlflowClient", run_id: str, message: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    match message["do"]:  # "create" is done: there is a run
        case "params":
            # MLflow never changes one: a later change goes to a tag.
            there = client.get_run(run_id).data.params
            new = [Param(key, value) for key, value in message["params"].items() if key not in there]
            changed = {key: value for key, value in message["params"].items() if there.get(key, value) != value}
            if new:
                client.log_batch(run_id, params=new)
            if changed:
                text = json.dumps(changed, sort_keys=True, ensure_ascii=False)
                client.set_tag(run_id, CHANGED_LATER_TAG, text[:TAG_LIMIT])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in message["tags"].items()])
        case "file":
            client.log_artifact(run_id, message["path"], message["artifact_path"])
        case "files":
            client.log_artifacts(run_id, message["path"], message["artifact_path"])
        case "text":
            client.log_text(run_id, message["text"], message["file"])
        case "table":
            client.log_text(run_id, message["text"], message["file"])
            # What `mlflow.load_table` and the page look for; `log_table` itself would append to the last table.
            tables = json.loads(client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
            entry = {"path": message["file"], "type": "table"}
            if entry not in tables:
                client.set_tag(run_id, _TABLES_TAG, json.dumps([*tables, entry]))
        case "dataset":
            tags = [InputTag("mlflow.data.context", message["context"])]
            client.log_inputs(run_id, [DatasetInput(Dataset(**message["dataset"]), tags)])
        case "running":
            client.update_run(run_id, status="RUNNING")
        case "status":
            client.set_terminated(run_id, message["status"], message["end_time"])


def _is_refused(error: Exception) -> bool:
    missing = isinstance(error, FileNotFoundError)  # the file to send is gone
    return missing or getattr(error, "error_code", None) in _REFUSED
