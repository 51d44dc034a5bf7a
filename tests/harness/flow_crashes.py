"""`python -m tests.harness.flow_crashes`: kills what a flow run needs; is it seen as crashed, does a retry resume it?

Against Prefect's server, pool and worker as `python -m flows.serve` starts them, in a copy of the project.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.flow_server import TINY, Served, Server, mlflow_runs, store
from tests.support.waiting import wait_until

REPORTED_SECONDS = 20.0
ENDED = ("CRASHED", "CANCELLED", "COMPLETED")


# Long enough to be killed in its middle, with a checkpoint behind it.
LONG_STEPS = 240
LONG = {
    **TINY,
    "train": {
        **TINY["train"], "eval_interval": 1_000_000, "checkpoint_interval": 10,
        "stop": {"max_steps": LONG_STEPS, "target_loss": None},
    },
}  # fmt: skip


def of_flow_run(flow_run: str) -> list[psutil.Process]:
    """The flow's own process, DVC and the stage."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if flow_run in (environment.get("GPT2_FLOW_RUN_ID"), environment.get("PREFECT__FLOW_RUN_ID")):
            found.append(process)
    return found


def wait_for_checkpoint(root: Path, flow_run: str) -> None:
    """One after the first step."""
    checkpoints = root / "workspaces" / flow_run / "models/checkpoints"
    wait_until(lambda: any(path.name > "step-00000000" for path in checkpoints.rglob("step-*")))


def retry(server: Server, flow_run: str) -> None:
    """As the last line of a run that ended says."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "retry", flow_run],
        cwd=server.root, env=server.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def check_resumed(server: Server, flow_run: str) -> None:
    """One MLflow run with each step once, resumed after a step that was saved."""
    resumed = re.search(r"resuming after step (\d+)", server.log(flow_run))
    assert resumed is not None, server.log(flow_run)
    assert int(resumed.group(1)) >= 10
    (run,) = mlflow_runs(server.root, flow_run)
    assert (run.info.status, "cached_from" in run.data.tags) == ("FINISHED", False)
    history = store(server.root).get_metric_history(run.info.run_id, "learning_rate")
    assert sorted(point.step for point in history) == list(range(1, LONG_STEPS + 1))


def worker_of(served: Served) -> psutil.Process:
    """Not the flow run's own process, which has the worker's command line no more."""
    workers = [one for one in served.family() if {"worker", "start"} <= set(one.cmdline())]
    return min(workers, key=lambda one: one.create_time())


def flow_run_alone(served: Served, flow_run: str) -> list[psutil.Process]:
    return of_flow_run(flow_run)


def worker_alone(served: Served, flow_run: str) -> list[psutil.Process]:
    return [worker_of(served)]


def worker_and_children(served: Served, flow_run: str) -> list[psutil.Process]:
    worker = worker_of(served)
    return [worker, *worker.children(recursive=True)]


def everything(served: Served, flow_run: str) -> list[psutil.Process]:
    return [psutil.Process(served.process.pid), *served.family()]


def serve_alone(served: Served, flow_run: str) -> list[psutil.Process]:
    return [psutil.Process(served.process.pid)]


KILLS = (flow_run_alone, worker_alone, worker_and_children, serve_alone, everything)


def crash(served: Served, server: Server, kill: Callable[[Served, str], list[psutil.Process]]) -> tuple[str, Server]:
    """Kill in the middle of a flow run's training, and let it resume to its end; what was wrong, if anything."""
    # A seed of its own: DVC would restore the model of the run before.
    flow_run = server.submit({**LONG, "run": {**LONG["run"], "seed": KILLS.index(kill)}})
    wait_for_checkpoint(server.root, flow_run)
    for process in kill(served, flow_run):
        process.kill()
    if kill is flow_run_alone:
        server.wait_for(flow_run, "CRASHED")
        # The worker may say so a second time some seconds later, whatever the state is by then: also after a retry.
        time.sleep(REPORTED_SECONDS)
    else:
        wait_until(lambda: served.process.poll() is not None)  # without a worker it does not serve
        print(f"  {len(served_by(served))} processes were left", flush=True)
        server = served.start()
    wait_until(lambda: server.state(flow_run)["type"] in ENDED)
    state = server.state(flow_run)["type"]
    print(f"  it is {state}", flush=True)
    if state == "COMPLETED":
        return "it had ended before it was killed", server
    retry(server, flow_run)
    server.wait_for(flow_run, "COMPLETED", 900)
    check_resumed(server, flow_run)
    return ("" if state in ENDED[:2] else state), server


def served_by(served: Served) -> list[psutil.Process]:
    """What carries the folder of this project in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("GPT2_SERVED_BY", "").endswith(f" {served.root}"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def main() -> int:
    names = [kill.__name__ for kill in KILLS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.harness.flow_crashes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("kills", nargs="*", choices=[*names, []], help=f"some of: {', '.join(names)} (default: all)")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="gpt2-flow-crashes-"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    served = Served(root)
    faults = 0
    try:
        server = served.start()
        for kill in KILLS:
            if options.kills and kill.__name__ not in options.kills:
                continue
            started_at = time.monotonic()
            print(f"{kill.__name__.replace('_', ' ')}:", flush=True)
            problem, server = crash(served, server, kill)
            faults += bool(problem)
            print(f"  {problem or 'resumed to its end'}, {time.monotonic() - started_at:.0f} s", flush=True)
    finally:
        served.stop()
    if not faults:
        shutil.rmtree(root)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
