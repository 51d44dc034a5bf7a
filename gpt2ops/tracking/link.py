"""The way to a run in the store. A run that began while the store was away is created when it answers.

Until then it has an id of this project's own. The store gives it another one: `restored_runs()` and the tag `begun_as`
say which.
"""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2core.errors import UserError
from gpt2ops.process.console import say
from gpt2ops.process.redact import redact
from gpt2ops.store.address import tracking_uri
from gpt2ops.store.client import connect, experiment_id
from gpt2ops.store.errors import is_away, one_line
from gpt2ops.tracking.journal import plan_of, read_records, run_of, spool, waiting_journals
from gpt2ops.tracking.restored_runs import remember_restored_run, restored_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BEGUN_AS_TAG = "begun_as"


class RunLink:
    """A run by the id that this project knows it by; open once the store has said that it is there."""

    def __init__(self, run_id: str, run_name: str, client: "MlflowClient | None" = None, run: "Run | None" = None):
        """`run_id` and `run_name` become the store's when the link opens; `experiment_id` is empty until then."""
        self.run_id, self.run_name, self.experiment_id = run_id, run_name, ""
        self._client = client
        self._opening = threading.Lock()
        self._run: Run | None = None
        if run is not None:
            self._adopt(run)

    @classmethod
    def to(cls, client: "MlflowClient", run: "Run") -> "RunLink":
        return cls("", "", client, run)

    @property
    def is_open(self) -> bool:
        return self._run is not None

    def open(self, plan: Mapping[str, Any] | None = None) -> tuple["MlflowClient", str]:
        """The client and the run's id in the store. A run that is not there is created as `plan` says.

        Raises what the store raises, LookupError where it has no such run and there is no plan.
        """
        with self._opening:
            self._client = self._client or connect()
            if self._run is None:
                run = known_run(self._client, self.run_id)
                if run is None and plan is None:
                    raise LookupError(f"run {self.run_id} is not in {redact(tracking_uri())}")
                self._adopt(run or _create(self._client, self.run_id, plan or {}))
            return self._client, self.run_id

    def last_steps(self) -> dict[str, int]:
        """The last step that the store had of each metric when the link was opened; none before."""
        return {metric.key: int(metric.step) for metric in self._run.data._metric_objs} if self._run else {}

    def _adopt(self, run: "Run") -> None:
        self._run, info = run, run.info
        self.run_id, self.run_name, self.experiment_id = str(info.run_id), str(info.run_name), str(info.experiment_id)


def pending_run(tags: Mapping[str, str]) -> RunLink | None:
    """The newest run with these tags that the store has yet to hear of, if it neither finished nor failed."""
    found = []
    for name in waiting_journals() if tags else ():
        records = read_records(spool() / name)
        plan = plan_of(records)
        messages = (record for record in reversed(records) if isinstance(record, dict))
        status = next((message.get("status") for message in messages if message["do"] == "status"), None)
        if plan and tags.items() <= plan["tags"].items() and status not in ("FINISHED", "FAILED"):
            found.append((plan["start_time"], run_of(name), plan["run_name"]))
    return RunLink(*max(found)[1:]) if found else None


def find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    """The run of that id, None where the store does not have it or it was deleted."""
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
    """As `find_run`, also by an id that another store, or this project alone, gave the run."""
    return find_run(client, run_id) or find_run(client, restored_runs().get(run_id, ""))


def _create(client: "MlflowClient", run_id: str, plan: Mapping[str, Any]) -> "Run":
    experiment = experiment_id(client, plan["experiment"])
    # A process may have created it and been killed, or have missed the answer, before it could write that down.
    found = client.search_runs([experiment], f"tags.{BEGUN_AS_TAG} = '{run_id}'", max_results=1)
    tags = {**plan["tags"], BEGUN_AS_TAG: run_id}
    run = found[0] if found else client.create_run(experiment, plan["start_time"], tags, plan["run_name"])
    remember_restored_run(run_id, str(run.info.run_id))
    say(f"tracking: MLflow answers; the run {run.info.run_name} is {run.info.run_id} there.")
    return run
