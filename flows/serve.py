"""`python -m flows.serve`: Prefect's server, work pool and worker, and MLflow's server, on this machine only.

Ctrl-C or SIGTERM stops them, the worker first, so that a running training saves its checkpoint.
"""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from flows.engine.login import VARIABLE, auth_string, make_login, place_of
from flows.engine.pool import (
    POOL,
    cancel_running,
    close_abandoned,
    create_pool,
    is_paused,
    queued,
    worker_is_online,
    worker_name,
)
from flows.engine.services import MLFLOW_PAGE, Service, Services, end, listener
from gpt2core.errors import UserError
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.process.redact import redact
from gpt2ops.process.served import left_by_serving
from gpt2ops.process.startup import end_imports
from gpt2ops.store.address import tracking_uri
from gpt2ops.store.client import connect

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
DEFAULT_PREFECT_PORT = 4200
DEFAULT_MLFLOW_PORT = 5000
# MLflow's job runners, for the evaluation of agents and traces, are eight processes of 240 MB.
SERVER_ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(prefect_port: int, mlflow_port: int) -> None:
    """Start the services, print how to use them, and wait for a signal. Raises UserError where a service fails."""
    login = os.environ[VARIABLE] = auth_string() or make_login(ROOT)  # this process's own requests need it too
    end_orphans()
    check_port(prefect_port, "--prefect-port")
    check_port(mlflow_port, "--mlflow-port")
    api = f"http://{HOST}:{prefect_port}/api"
    store = open_store()
    environment = {
        **SERVER_ENVIRONMENT,
        **os.environ,
        "PREFECT_API_URL": api,
        "PREFECT_UI_API_URL": "/api",  # by whatever name the page was opened
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{prefect_port}",
        "PYTHONUNBUFFERED": "1",
    }
    if not is_remote(store):
        environment[MLFLOW_PAGE] = f"http://{HOST}:{mlflow_port}"
    services = Services(ROOT, ROOT / paths.LOGS, environment)
    with stop_signals():
        try:
            say("serve: starting Prefect's server and MLflow's")
            server = services.start(
                "prefect-server", "flows.engine.prefect_server", "--host", HOST, "--port", str(prefect_port)
            )
            mlflow = None if is_remote(store) else start_mlflow(services, store, mlflow_port)
            services.wait_until(server, lambda: answers(f"{api}/health"))
            say("serve: setting up the work pool and the deployment")
            create_pool(api)
            if abandoned := close_abandoned(api, is_serving):
                say(
                    f"serve: {abandoned} flow run(s) lost their worker and have crashed; retry them from Prefect's page"
                )
            deploy(environment)
            waiting = queued(api)
            worker = services.start(
                "prefect-worker", "prefect", "worker", "start", "--pool", POOL, "--type", "process",
                "--name", worker_name(), own_log=False,
            )  # fmt: skip
            services.wait_until(worker, lambda: worker_is_online(api))
            if mlflow:
                services.wait_until(mlflow, lambda: answers(f"http://{HOST}:{mlflow_port}/health"))
            ready = welcome(
                prefect_port, f"http://{HOST}:{mlflow_port}" if mlflow else redact(store), place_of(login, ROOT)
            )
            if waiting:
                ready += f"\n  {queue_line(waiting, paused=is_paused(api))}\n"
            say(ready)  # in one write: a reader of one line has all of them
            stay(services, api)
        except KeyboardInterrupt:
            ignore_signals()
            say("serve: stopping the servers")
        finally:
            services.stop()
    say("serve: stopped")


def stay(services: Services, api: str) -> None:
    """Wait for a signal (KeyboardInterrupt) or the end of a service (UserError), then cancel the running flow run."""
    try:
        while True:
            services.check()
            time.sleep(0.5)
    except (KeyboardInterrupt, UserError):
        ignore_signals()
        say("serve: stopping; a running training saves its checkpoint first")
        with suppress(OSError):  # the service that ended may be Prefect's server
            cancel_running(api)
        raise


def end_orphans() -> None:
    """End the processes of a killed `flows.serve` of this folder; a training saves its checkpoint first."""
    processes = left_by_serving(ROOT)
    if not processes:
        return
    say(f"serve: ending {len(processes)} processes of a `flows.serve` that was killed")
    addresses = set()
    for process in processes:
        with suppress(psutil.Error):
            addresses.add(process.environ().get("PREFECT_API_URL"))
    for api in filter(None, addresses):
        with suppress(OSError):  # its server may have ended
            cancel_running(api)
    end(processes)


def is_serving(pid: int) -> bool:
    """Whether the process `pid` is a `flows.serve`, other than this one."""
    try:
        return pid != os.getpid() and "flows.serve" in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def check_port(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            holder = listener(port) or "is another `python -m flows.serve` running?"
            raise UserError(
                f"port {port} is in use: {holder}; stop that, or choose another port with {option}."
            ) from None
        except OverflowError:
            raise UserError(f"{option} ({port}) must be between 1 and 65535.") from None


def open_store() -> str:
    """Create MLflow's store before two services try to at once; returns its URI."""
    os.environ["GPT2_PROJECT_ROOT"] = str(ROOT)
    connect()
    return tracking_uri()


def is_remote(store: str) -> bool:
    """Whether the store is an MLflow server that runs elsewhere, with its own page."""
    return store.startswith(("http://", "https://", "databricks"))


def start_mlflow(services: Services, store: str, port: int) -> Service:
    artifacts = (ROOT / paths.MLRUNS / "artifacts").as_uri()
    return services.start(
        "mlflow-server", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1",
        "--backend-store-uri", store, "--artifacts-destination", artifacts,
    )  # fmt: skip


def deploy(environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`prefect deploy --all` failed:\n{done.stdout}{done.stderr}")


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def welcome(prefect_port: int, mlflow: str, login: str) -> str:
    here = f"cd {shlex.quote(str(ROOT))}"
    if prefect_port != DEFAULT_PREFECT_PORT:  # the one in prefect.toml
        here += f" && export PREFECT_API_URL=http://{HOST}:{prefect_port}/api"
    return "\n".join(
        [
            "",
            f"  Prefect  http://{HOST}:{prefect_port}  (its page asks for a login: {login})",
            f"  MLflow   {mlflow}",
            "",
            "  Start a run from another terminal, with this Python environment active:",
            f"    {here}",
            "    prefect deployment run 'fine-tune/local' -p 'train={\"learning_rate\": 1e-3}' --watch",
            "",
            "  Ctrl-C stops all of it.",
            "",
        ]
    )


def queue_line(waiting: int, *, paused: bool) -> str:
    runs = f"{waiting} flow run(s) were queued before this start"
    return f"{runs} and wait: `prefect work-pool resume {POOL}`" if paused else f"{runs} and start now, one at a time."


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGTERM and SIGINT raise KeyboardInterrupt, also where a shell started this with SIGINT ignored (`... &`)."""
    previous = {number: signal.signal(number, signal.default_int_handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """So that a second Ctrl-C does not leave some services running."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str] | None = None) -> int:
    end_imports()
    parser = argparse.ArgumentParser(prog="python -m flows.serve", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prefect-port", type=int, default=DEFAULT_PREFECT_PORT)
    parser.add_argument("--mlflow-port", type=int, default=DEFAULT_MLFLOW_PORT)
    options = parser.parse_args(arguments)
    try:
        serve(options.prefect_port, options.mlflow_port)
    except UserError as error:
        print(f"serve: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
