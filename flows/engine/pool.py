"""The work pool that `flows.serve` keeps: one flow run at a time, none left running without a worker."""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from flows.engine.services import is_serving
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


def worker_name() -> str:
    """Says which `flows.serve` the worker belongs to: Prefect calls a killed worker ONLINE for a while yet."""
    return f"{POOL}-{os.getpid()}"


def worker_is_online(api: str) -> bool:
    """Whether the worker of this process is."""
    return any(worker["name"] == worker_name() and worker["status"] == "ONLINE" for worker in _workers(api))


def close_abandoned(api: str) -> int:
    """Before a worker starts: forget those of before, and mark as crashed what they left behind.

    It would hold the pool's only place for ever. Where a `flows.serve` at another port has the same database, its
    runs are left alone.
    """
    served = False
    for worker in _workers(api):
        if _is_served(worker["name"]):
            served = True
        else:
            request("DELETE", f"{api}/work_pools/{POOL}/workers/{quote(worker['name'])}")
    abandoned = [] if served else _unfinished(api)
    for flow_run in abandoned:
        _set_state(api, flow_run, "CRASHED", "The worker was gone.")
    return len(abandoned)


def queued(api: str) -> int:
    """How many flow runs wait for a place, those of a later time not counted."""
    query = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {
            "state": {"type": {"any_": ["SCHEDULED"]}},
            "expected_start_time": {"before_": datetime.now(UTC).isoformat()},
        },
    }
    return int(request("POST", f"{api}/flow_runs/count", query))


def is_paused(api: str) -> bool:
    return bool(request("GET", f"{api}/work_pools/{POOL}")["is_paused"])


def cancel_running(api: str) -> None:
    """Cancel what runs and wait until it has left, or mark it as crashed; what is queued stays queued.

    A worker that is stopped kills its flow run at once; a cancelled one saves a checkpoint first.
    """
    paused = is_paused(api)
    request("PATCH", f"{api}/work_pools/{POOL}", {"is_paused": True})
    try:
        for flow_run in _unfinished(api):
            _set_state(api, flow_run, "CANCELLING", "Serving was stopped.")
        deadline = time.monotonic() + _CANCEL_SECONDS
        while _unfinished(api) and time.monotonic() < deadline:
            time.sleep(0.3)
        for flow_run in _unfinished(api):
            _set_state(api, flow_run, "CRASHED", "Serving was stopped, and the run did not leave in time.")
    finally:
        request("PATCH", f"{api}/work_pools/{POOL}", {"is_paused": paused})


def _workers(api: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request("POST", f"{api}/work_pools/{POOL}/workers/filter", {})
    return found


def _is_served(worker: str) -> bool:
    pid = worker.removeprefix(f"{POOL}-")
    return pid.isdecimal() and is_serving(int(pid))


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


def auth_string() -> str | None:
    """`user:password` of Prefect's API, where its user has set one for the client or only for the server."""
    from prefect.settings import get_current_settings

    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
        if value := os.environ.get(name):
            return value
    settings = get_current_settings()
    found = settings.api.auth_string or settings.server.api.auth_string
    return found.get_secret_value() if found else None


def _login() -> dict[str, str]:
    login = auth_string()
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}


def request(method: str, url: str, body: Any = None) -> Any:
    """The answer of Prefect's server. It says 503 where its SQLite file was locked too long: try again then."""
    data = None if body is None else json.dumps(body).encode()
    message = urllib.request.Request(url, data, {"Content-Type": "application/json", **_login()}, method=method)
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
