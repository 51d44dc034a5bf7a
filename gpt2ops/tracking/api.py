"""The MLflow run of a pipeline execution: `finetune` starts it, every later stage reopens it from models/run.json."""

import hashlib
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2core.errors import UserError
from gpt2core.storage.files import read_json
from gpt2ops.params.schema import Params, load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.final_metrics import report_metrics
from gpt2ops.pipeline.run_origin import origin_tags
from gpt2ops.process.console import say
from gpt2ops.process.redact import redact
from gpt2ops.store.address import tracking_uri
from gpt2ops.store.client import connect, experiment_id
from gpt2ops.store.errors import StoreAwayError, is_away, one_line
from gpt2ops.tracking.completeness import missing_points
from gpt2ops.tracking.journal import Point, open_journal, run_of, spool, take_journal, waiting_journals
from gpt2ops.tracking.link import BEGUN_AS_TAG, RunLink, known_run, pending_run
from gpt2ops.tracking.restored_runs import remember_restored_run
from gpt2ops.tracking.run import TrackedRun
from gpt2ops.tracking.sender import Sender

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_RESUME_TAG = "resume_key"


def start_run(
    params: Params, run_name: str | None = None, resume_run_id: str | None = None, resume_key: str | None = None
) -> TrackedRun:
    """The run of a training: a new one, or `resume_run_id` again where the store has it.

    `resume_key` identifies the training: a run of that key that was killed before its first checkpoint is resumed, too.
    The run gets every parameter, the tags of its origin, and the machine's load until `finish`. While the store is away
    the run starts without it, and is created when the store answers.
    Raises UserError where the store cannot be used.
    """
    tags = {_RESUME_TAG: _resume_tag(resume_key)} if resume_key else {}
    begun_as = uuid.uuid4().hex  # a run whose creation the store did not answer is found by it, not made again
    try:
        tracked = TrackedRun(_link_of_training(params, run_name, resume_run_id, tags, begun_as))
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
        if not is_away(error):
            raise
        _say_away("the training", error)
        tracked = _start_while_away(params, run_name or "", resume_run_id, tags, begun_as)
    tracked.begin(params)
    tracked.log_settings()
    tracked.watch_system()
    return tracked


def _link_of_training(
    params: Params, run_name: str | None, resume_run_id: str | None, tags: Mapping[str, str], begun_as: str
) -> RunLink:
    client = connect()
    deliver_leftovers(client)
    experiment = experiment_id(client, params.run.experiment)
    run = known_run(client, resume_run_id) if resume_run_id else _killed_run(client, experiment, tags)
    if run is None:
        run = client.create_run(experiment, run_name=run_name, tags={**origin_tags(), **tags, BEGUN_AS_TAG: begun_as})
    return RunLink.to(client, run)


def _start_while_away(
    params: Params, run_name: str, resume_run_id: str | None, tags: Mapping[str, str], begun_as: str
) -> TrackedRun:
    link = RunLink(resume_run_id, run_name) if resume_run_id else pending_run(tags)
    if link is not None:
        return TrackedRun(link)
    journal = open_journal(begun_as)
    plan = {
        "experiment": params.run.experiment,
        "run_name": run_name,
        "tags": {**origin_tags(), **tags},
        "start_time": int(time.time() * 1000),
    }
    journal.post({"do": "create", "what": "the run", **plan})
    journal.secure()
    return TrackedRun(RunLink(journal.name, run_name), journal)


def deliver_leftovers(client: "MlflowClient") -> None:
    """Send what runs that have ended could not send while the store was away."""
    for name in waiting_journals():
        journal = take_journal(name)
        if journal is None:
            continue  # another process writes into that run
        link = RunLink(run_of(name), run_of(name)[:8], client)
        try:
            link.open(journal.plan)
            if Sender(journal, link).deliver():
                say(f"tracking: what waited for MLflow run {link.run_name} has been sent.")
        except LookupError:
            continue  # `gpt2 gc` clears away what belongs to no run
        except UserError as error:
            if is_away(error):
                raise
            say(f"tracking: warning: what waits in {journal.file} cannot be sent: {error}")
        finally:
            journal.release()


def _say_away(what: str, error: Exception) -> None:
    reason = error.reason if isinstance(error, StoreAwayError) else one_line(error)
    say(
        f"tracking: warning: MLflow at {redact(tracking_uri())} is away ({reason}); {what} continues. What is logged "
        f"waits in {spool()} and is sent when MLflow answers, at the latest by the next stage or run."
    )


@contextmanager
def tracked_run(*, wait: bool = True, last: bool = False) -> Iterator[TrackedRun]:
    """The run that produced models/best, open again for a later stage.

    A run that this store does not have (its results came by `dvc pull`) is created from the files, tagged
    `cached_from`; later stages share it. What is logged while the store is away waits; without `wait` that is an error.
    What earlier stages lost is sent again from their reports; only the `last` stage looks for gaps within a history.
    Raises UserError where models/run.json is missing or the store cannot be used.
    """
    record = _read_run_record()
    try:
        client = connect()
        deliver_leftovers(client)
        run = known_run(client, record["run_id"])
        lost = [] if run is None else _lost_points(client, run, record["run_id"], every_step=last)
        tracked = _restore_run(client, record) if run is None else TrackedRun(RunLink.to(client, run))
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
        if not (wait and is_away(error)):
            raise
        _say_away("this stage", error)
        lost = []
        tracked = TrackedRun(RunLink(record["run_id"], record["run_name"]))
    tracked.begin(_params_of_run())
    if lost:
        say(
            f"tracking: MLflow run {tracked.run_name} lacked {len(lost)} points of {paths.HISTORY} and the metrics "
            "beside it; they are sent again."
        )
        tracked.log_points(lost)
    with tracked:
        yield tracked


def _lost_points(client: "MlflowClient", run: "Run", known_as: str, *, every_step: bool) -> list[Point]:
    """What the reports have and the store lacks; none while a journal may still bring it."""
    if {known_as, str(run.info.run_id)} & set(map(run_of, waiting_journals())):
        return []
    return missing_points(client, run, every_step=every_step)


def _read_run_record() -> dict[str, str]:
    try:
        record = read_json(paths.RUN)
        return {"run_id": str(record["run_id"]), "run_name": str(record.get("run_name") or "")}
    except FileNotFoundError:
        raise UserError(f"{paths.RUN} is missing: run the stage finetune first (`dvc repro finetune`).") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{paths.RUN} is damaged (no run_id in it): run `dvc repro --force finetune`.") from None


def _params_of_run() -> Params:
    """The settings, with the seed of the run that was kept of several."""
    params, seed = load_params(), read_json(paths.RUN).get("seed")
    return params if seed is None else params.model_copy(update={"run": params.run.model_copy(update={"seed": seed})})


def _resume_tag(key: str) -> str:
    """The training `key` in this folder of this machine: others may share the store."""
    return hashlib.sha256(f"{socket.gethostname()}\0{Path.cwd()}\0{key}".encode()).hexdigest()[:16]


def _killed_run(client: "MlflowClient", experiment: str, tags: Mapping[str, str]) -> "Run | None":
    """The newest run with these tags, if it neither finished nor failed."""
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
    tracked = TrackedRun(RunLink.to(client, run))
    for row in read_json(paths.HISTORY) if paths.HISTORY.exists() else []:
        tracked.log_metrics({key: value for key, value in row.items() if key != "step"}, step=row["step"])
    tracked.log_metrics(report_metrics())
    return tracked
