"""The way to a run in the store. Where the store was away at its start, the run is found or made when it answers.

Such a run is written down in `mlruns/spool/ID.run.json`, under an id of our own; the store gives it another one, and
`restored_runs()` and the tag `begun_as` say which.
"""

import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core.errors import UserError
from gpt2core.storage.files import read_json, write_json
from gpt2ops.params.schema import Params
from gpt2ops.process.stage import say
from gpt2ops.tracking.outbox import read_messages
from gpt2ops.tracking.store import (
    connect,
    experiment_id,
    is_away,
    mlruns,
    one_line,
    redact,
    remember_restored_run,
    restored_runs,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BEGUN_AS_TAG = "begun_as"
_PLAN = ".run.json"


class Link:
    """A run by the id that this project knows it by; open once the store has said that it is there."""

    def __init__(self, run_id: str, run_name: str, client: "MlflowClient | None" = None, run: "Run | None" = None):
        self._known_id, self._name, self._client, self._run = run_id, run_name, client, run
        self._opening = threading.Lock()

    @classmethod
    def to(cls, client: "MlflowClient", run: "Run") -> "Link":
        return cls(str(run.info.run_id), str(run.info.run_name), client, run)

    @property
    def is_open(self) -> bool:
        return self._run is not None

    @property
    def run_id(self) -> str:
        """The store's id; before it has answered, the one that the run is known by here."""
        return str(self._run.info.run_id) if self._run else self._known_id

    @property
    def run_name(self) -> str:
        return str(self._run.info.run_name) if self._run else self._name

    @property
    def experiment_id(self) -> str:
        """Empty before the store has answered."""
        return str(self._run.info.experiment_id) if self._run else ""

    def open(self) -> tuple["MlflowClient", str]:
        """The client and the run's id in the store; raises what the store raises, LookupError where it has no such run.

        A run that was begun while the store was away is made here, once, whoever comes first.
        """
        with self._opening:
            self._client = self._client or connect()
            if self._run is None:
                self._run = known_run(self._client, self._known_id) or _make(self._client, self._known_id)
            return self._client, str(self._run.info.run_id)

    def last_steps(self) -> dict[str, int]:
        """The last step that the store has of each metric; raises as `open` does."""
        self.open()
        assert self._run is not None
        return {metric.key: int(metric.step) for metric in self._run.data._metric_objs}


def begin(experiment: str, run_name: str, tags: Mapping[str, str]) -> Link:
    """Write down a run that the store cannot be told of now."""
    run_id = uuid.uuid4().hex
    plan = {"experiment": experiment, "run_name": run_name, "tags": dict(tags), "start_time": int(time.time() * 1000)}
    write_json(_plan_file(run_id), plan)
    return Link(run_id, run_name)


def begun(tags: Mapping[str, str]) -> Link | None:
    """The newest run with these tags that was begun so, where it neither finished nor failed."""
    plans = {run_id: plan for run_id in waiting_runs() if (plan := _read_plan(run_id)) is not None}
    for run_id in sorted(plans, key=lambda name: plans[name]["start_time"], reverse=True) if tags else []:
        if tags.items() <= plans[run_id]["tags"].items() and _last_status(run_id) not in ("FINISHED", "FAILED"):
            return Link(run_id, plans[run_id]["run_name"])
    return None


def is_begun(run_id: str) -> bool:
    """Whether the store has yet to be told of this run."""
    return _plan_file(run_id).exists()


def waiting_runs() -> list[str]:
    """Ids of the runs for which something waits in the spool."""
    entries = [path.name for path in (mlruns() / "spool").glob("[!.]*") if path.suffix != ".lock"]
    return sorted({name.partition(".")[0] for name in entries})


def find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The run of that id, None where the store has it not or it was deleted."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        if is_away(error):
            raise
        raise UserError(f"cannot read run {run_id} from {redact(tracking_uri())}: {one_line(error)}") from None
    return run if run.info.lifecycle_stage == "active" else None


def known_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The same, also by an id that another store, or nobody but this project, gave it."""
    return find_run(client, run_id) or find_run(client, restored_runs().get(run_id, ""))


def _make(client: "MlflowClient", run_id: str) -> "Run":
    from filelock import FileLock

    with FileLock(mlruns() / "spool" / ".making.lock"):
        plan = _read_plan(run_id)
        if plan is None:  # another process has been faster, or there never was one
            run = known_run(client, run_id)
            if run is None:
                raise LookupError(f"run {run_id} is not in {redact(tracking_uri())}")
            return run
        experiment = experiment_id(client, plan["experiment"])
        # Whoever made it may have been killed, or not have heard the answer, before he could write that down.
        found = client.search_runs([experiment], f"tags.{BEGUN_AS_TAG} = '{run_id}'", max_results=1)
        run = (
            found[0]
            if found
            else client.create_run(
                experiment, plan["start_time"], {**plan["tags"], BEGUN_AS_TAG: run_id}, plan["run_name"]
            )
        )
        remember_restored_run(run_id, str(run.info.run_id))
        _plan_file(run_id).unlink(missing_ok=True)
    say(f"tracking: MLflow answers; the run {run.info.run_name} is {run.info.run_id} there.")
    return run


def _plan_file(run_id: str) -> Path:
    return mlruns() / "spool" / f"{run_id}{_PLAN}"


def _read_plan(run_id: str) -> dict[str, Any] | None:
    """None where there is none; one that somebody has damaged is of a run without a name."""
    try:
        plan = read_json(_plan_file(run_id))
    except FileNotFoundError:
        return None
    except ValueError:
        plan = None
    empty = {"experiment": Params().run.experiment, "run_name": "", "tags": {}, "start_time": int(time.time() * 1000)}
    return {**empty, **plan} if isinstance(plan, dict) else empty


def _last_status(run_id: str) -> str | None:
    messages = read_messages(mlruns() / "spool" / run_id)
    return next((message.get("status") for message in reversed(messages) if message["do"] == "status"), None)
