"""What a run tells MLflow beside metrics: parameters, tags, files, its status; kept on disk where the store fails.

A message is a plain dict, so that another process can deliver it; each may be delivered twice without harm.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core.storage.files import read_json, write_text
from gpt2ops.process.stage import say
from gpt2ops.tracking.store import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

Message = dict[str, Any]
TAG_LIMIT = 5000
TABLES_TAG = "mlflow.loggedArtifacts"
# After a failure nobody waits for the store again so soon: each try may take as long as its time-out.
PAUSE_SECONDS = 10.0
# The store has understood, and will never take it.
REFUSED = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "PERMISSION_DENIED"}


class Outbox:
    """Messages of one run in order. Where one fails, it and those after it wait in `folder`."""

    def __init__(
        self,
        link: "Callable[[], tuple[MlflowClient, str]]",
        run_name: str,
        folder: Path,
        warn: Callable[[str], None] = say,
        *,
        failing: bool = False,
    ) -> None:
        """`link` gives the client and the run's id there, or raises; `failing` where it is known that it does."""
        self._link, self._run_name, self._folder, self._warn = link, run_name, folder, warn
        self._messages = read_messages(folder)
        self._changing, self._delivering = threading.Lock(), threading.Lock()
        self._failed_at = time.monotonic() if failing else -PAUSE_SECONDS
        self._said = failing

    @property
    def waits(self) -> bool:
        return bool(self._messages)

    def post(self, what: str, message: Message, *, wait: bool = True) -> None:
        """Deliver `message`, named `what` in warnings. Without `wait` the next `deliver` does."""
        with self._changing:
            self._messages.append({**message, "what": what})
        if wait:
            self.settle()

    def settle(self) -> None:
        """Deliver what waits; right after a failure only keep it."""
        if time.monotonic() - self._failed_at < PAUSE_SECONDS:
            self.secure()
        else:
            self.deliver()

    def deliver(self) -> bool:
        """Deliver what waits; False where the store fails: then all of it is in the folder."""
        with self._delivering:
            sent = 0
            while self._messages:
                message = self._messages[0]
                try:
                    perform(*self._link(), message)
                except Exception as error:  # requests, SQLAlchemy, boto and MLflow each raise their own
                    if not _is_refused(error):
                        self._failed_at = time.monotonic()
                        self._say_once(message, error)
                        self.secure()
                        return False
                    self._warn(
                        f"tracking: warning: MLflow run {self._run_name} refuses {message['what']}: {one_line(error)}"
                    )
                with self._changing:
                    del self._messages[0]
                sent += 1
            with self._changing:
                if not self._messages:
                    shutil.rmtree(self._folder, ignore_errors=True)
            if sent:
                self._failed_at = -PAUSE_SECONDS
            if self._said and sent:
                self._said = False
                self._warn(f"tracking: {sent} things that waited for MLflow run {self._run_name} have been sent.")
            return True

    def secure(self) -> None:
        """Put what waits on the disk, with copies of the files that it speaks of."""
        with self._changing:
            if not self._messages:
                return
            try:
                for number, message in enumerate(self._messages):
                    if "path" in message and not message.get("kept"):
                        self._keep_file(number, message)
                write_text(self._folder / "messages.json", json.dumps(self._messages))
            except OSError as error:
                self._warn(
                    f"tracking: warning: {self._messages[-1]['what']} for MLflow run {self._run_name} cannot be kept "
                    f"either ({error.strerror or error}) and is lost unless MLflow answers before this stage ends."
                )

    def _keep_file(self, number: int, message: Message) -> None:
        source = Path(message["path"])
        folder = self._folder / f"{time.time_ns()}-{number}"
        folder.mkdir(parents=True)
        copy = folder / source.name
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            shutil.copyfile(source, copy)
        message.update(path=str(copy.resolve()), kept=True)

    def _say_once(self, message: Message, error: Exception) -> None:
        if not self._said:
            self._said = True
            self._warn(
                f"tracking: warning: {message['what']} did not reach MLflow run {self._run_name} ({one_line(error)}); "
                f"it waits in {self._folder}, and the next stage or run in this project sends it."
            )


def perform(client: "MlflowClient", run_id: str, message: Mapping[str, Any]) -> None:
    """Tell the store. Raises what the store raises."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    match message["do"]:
        case "params":
            # MLflow never changes one: a later change goes to a tag.
            there = client.get_run(run_id).data.params
            new = [Param(key, value) for key, value in message["params"].items() if key not in there]
            changed = {key: value for key, value in message["params"].items() if there.get(key, value) != value}
            if new:
                client.log_batch(run_id, params=new)
            if changed:
                text = json.dumps(changed, sort_keys=True, ensure_ascii=False)
                client.set_tag(run_id, "params_changed_later", text[:TAG_LIMIT])
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
            tables = json.loads(client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"))
            entry = {"path": message["file"], "type": "table"}
            if entry not in tables:
                client.set_tag(run_id, TABLES_TAG, json.dumps([*tables, entry]))
        case "dataset":
            tags = [InputTag("mlflow.data.context", message["context"])]
            client.log_inputs(run_id, [DatasetInput(Dataset(**message["dataset"]), tags)])
        case "running":
            client.update_run(run_id, status="RUNNING")
        case "status":
            client.set_terminated(run_id, message["status"], message["end_time"])


def _is_refused(error: Exception) -> bool:
    missing = isinstance(error, FileNotFoundError)  # the file to send is gone
    return missing or getattr(error, "error_code", None) in REFUSED


def read_messages(folder: Path) -> list[Message]:
    """What waits in `folder`; nothing where there is nothing that can be read."""
    try:
        messages = read_json(folder / "messages.json")
    except (OSError, ValueError):
        return []
    listed = messages if isinstance(messages, list) else []
    return [message for message in listed if isinstance(message, dict) and {"do", "what"} <= set(message)]
