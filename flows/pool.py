"""The work pool that `flows.serve` keeps: one flow run at a time, none left running without a worker."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

from gpt2core.errors import UserError

POOL = "local"
_UNFINISHED = ("PENDING", "RUNNING", "CANCELLING")
# Prefect gives a cancelled run 30 s, and the worker then reports what became of it.
_CANCEL_SECONDS = 40.0
_ATTEMPTS = 5


def create_pool(api: str) -> None:
    """One flow run at a time; others wait. A pool that is there keeps what its user has set."""
    from prefect.workers.process import ProcessWorker

    pool = {
        "name": POOL,
        "type": "process",
        "concurrency_limit": 1,
        "base_job_template": ProcessWorker.get_default_base_job_template(),
    }
    try:
        request("POST", f"{api}/work_pools/", pool)
    except urllib.error.HTTPError as error:
        if error.code != 409:  # it exists
            raise UserError(f"Prefect's server refuses the work pool {POOL}: {error}") from None


def worker_is_online(api: str) -> bool:
    workers = request("POST", f"{api}/work_pools/{POOL}/workers/filter", {})
    return any(worker["status"] == "ONLINE" for worker in workers)


def close_abandoned(api: str) -> int:
    """Mark as crashed what a worker left behind that was killed, for it would hold the pool's only place for ever."""
    abandoned = [] if worker_is_online(api) else _unfinished(api)
    for flow_run in abandoned:
        _set_state(api, flow_run, "CRASHED", "The worker was gone.")
    return len(abandoned)


def cancel_running(api: str) -> None:
    """Cancel what runs and wait until it has left; what is queued stays queued.

    A worker that is stopped kills its flow run at once; a cancelled one saves a checkpoint first.
    """
    paused = request("GET", f"{api}/work_pools/{POOL}")["is_paused"]
    request("PATCH", f"{api}/work_pools/{POOL}", {"is_paused": True})
    try:
        for flow_run in _unfinished(api):
            _set_state(api, flow_run, "CANCELLING", "Serving was stopped.")
        deadline = time.monotonic() + _CANCEL_SECONDS
        while _unfinished(api) and time.monotonic() < deadline:
            time.sleep(0.3)
    finally:
        request("PATCH", f"{api}/work_pools/{POOL}", {"is_paused": paused})


def _unfinished(api: str) -> list[dict[str, Any]]:
    query = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {"state": {"type": {"any_": list(_UNFINISHED)}}},
    }
    found: list[dict[str, Any]] = request("POST", f"{api}/flow_runs/filter", query)
    return found


def _set_state(api: str, flow_run: dict[str, Any], kind: str, message: str) -> None:
    state = {"type": kind, "name": kind.capitalize(), "message": message}
    request("POST", f"{api}/flow_runs/{flow_run['id']}/set_state", {"state": state, "force": True})


def request(method: str, url: str, body: Any = None) -> Any:
    """The answer of Prefect's server. It says 503 where its SQLite file was locked too long: try again then."""
    data = None if body is None else json.dumps(body).encode()
    message = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    for attempt in range(_ATTEMPTS):
        try:
            with urllib.request.urlopen(message, timeout=30) as response:
                answer = response.read()
            return json.loads(answer) if answer else None
        except urllib.error.HTTPError as error:
            if error.code != 503 or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(1.0)
    return None
