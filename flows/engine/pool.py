"""The Prefect work pool of `flows.serve`: one flow run at a time, and none left RUNNING without a worker."""

import base64
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from flows.engine.login import auth_string
from gpt2core.errors import UserError

POOL = "local"
_UNFINISHED = ("PENDING", "RUNNING", "CANCELLING")
# Prefect gives a cancelled run 30 s; the worker then reports its final state.
_CANCEL_SECONDS = 40.0
_ATTEMPTS = 5


# A flow run's own `job_variables`, such as its command, are refused: each runs as the worker runs it.
_JOB_TEMPLATE = {
    "job_configuration": {"env": {}, "stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}


def create_pool(api: str) -> None:
    """Create the pool with one slot: other flow runs wait. An existing pool keeps its number of slots."""
    pool = {"name": POOL, "type": "process", "concurrency_limit": 1, "base_job_template": _JOB_TEMPLATE}
    try:
        request("POST", f"{api}/work_pools/", pool)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise UserError(f"Prefect's server refuses the work pool {POOL}: {error}") from None
        request("PATCH", f"{api}/work_pools/{POOL}", {"base_job_template": _JOB_TEMPLATE})


def worker_name() -> str:
    """Contains the process id of its `flows.serve`: Prefect reports a killed worker as ONLINE for a while."""
    return f"{POOL}-{os.getpid()}"


def worker_is_online(api: str) -> bool:
    """Whether the worker that this process started is ONLINE."""
    return any(worker["name"] == worker_name() and worker["status"] == "ONLINE" for worker in _workers(api))


def close_abandoned(api: str, is_serving: Callable[[int], bool]) -> int:
    """Before a worker starts: remove earlier workers from the pool, and mark their unfinished flow runs as crashed.

    An unfinished run would occupy the pool's only slot for ever. Returns how many there were. `is_serving` says whether
    a process id is another `flows.serve` with the same database (at another port): its runs are left alone.
    """
    served = False
    for worker in _workers(api):
        pid = worker["name"].removeprefix(f"{POOL}-")
        if pid.isdecimal() and is_serving(int(pid)):
            served = True
        else:
            request("DELETE", f"{api}/work_pools/{POOL}/workers/{quote(worker['name'])}")
    abandoned = [] if served else _unfinished(api)
    for flow_run in abandoned:
        _set_state(api, flow_run, "CRASHED", "The worker had ended.")
    return len(abandoned)


def queued(api: str) -> int:
    """The number of flow runs that wait for a slot, without those scheduled for later."""
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
    """Cancel the running flow run and wait for its end, or mark it as crashed; queued ones stay queued.

    A stopped worker kills its flow run at once; a cancelled flow run saves a checkpoint first.
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
            _set_state(api, flow_run, "CRASHED", "Serving was stopped, and the run did not end in time.")
    finally:
        request("PATCH", f"{api}/work_pools/{POOL}", {"is_paused": paused})


def _workers(api: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request("POST", f"{api}/work_pools/{POOL}/workers/filter", {})
    return found


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


def _login() -> dict[str, str]:
    login = auth_string()
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}


def request(method: str, url: str, body: Any = None) -> Any:
    """The response of Prefect's server. Retries after 503, which it sends while its SQLite file is locked."""
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
