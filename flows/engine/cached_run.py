"""`python -m flows.engine.cached_run FLOW_RUN_ID`, in a workspace: prints the MLflow run id of a finished flow run.

The line is `ID trained` where this flow run trained the model, and `ID restored` where DVC restored it: then ID is that
of a second run, which has the tag `cached_from`.
"""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

import sys
from typing import TYPE_CHECKING

from gpt2core.storage.files import read_json
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.final_metrics import report_metrics
from gpt2ops.pipeline.run_origin import origin_tags
from gpt2ops.process.stage import run_stage
from gpt2ops.store.client import connect, experiment_id
from gpt2ops.tracking.link import RunLink, known_run
from gpt2ops.tracking.run import TrackedRun

if TYPE_CHECKING:
    from mlflow.entities import Run


def flow_run_record(flow_run_id: str) -> str:
    """`ID trained` or `ID restored`. Raises UserError where the store cannot be used."""
    trained = str(read_json(paths.RUN)["run_id"])
    client = connect()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    own = client.search_runs(experiments, f"tags.prefect_flow_run_id = '{flow_run_id}'", max_results=1)
    if not own:
        return f"{link_cached_run(trained, flow_run_id)} restored"
    return f"{own[0].info.run_id} {'restored' if 'cached_from' in own[0].data.tags else 'trained'}"


def link_cached_run(run_id: str, flow_run_id: str) -> str:
    """A second run for a flow run whose inputs are unchanged: parameters and final metrics of `run_id`, and a link.

    Returns its id. Raises UserError where the store cannot be used.
    """
    client = connect()
    from mlflow.entities import Metric, Param

    origin = known_run(client, run_id)
    tags = {**origin_tags(), "cached_from": run_id, "prefect_flow_run_id": flow_run_id}
    if origin is None:
        params = load_params()
        run = client.create_run(experiment_id(client, params.run.experiment), tags=tags)
        with TrackedRun(RunLink.to(client, run)) as tracked:
            tracked.log_params(params)
            tracked.log_metrics(report_metrics())
        return str(run.info.run_id)
    run = client.create_run(
        origin.info.experiment_id, run_name=f"{origin.info.run_name} (cached)", tags={**_own_tags(origin), **tags}
    )
    metrics = [
        Metric(metric.key, metric.value, metric.timestamp, metric.step)
        for metric in origin.data._metric_objs
        if not metric.key.startswith("system/")
    ]
    client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in origin.data.params.items()])
    for start in range(0, len(metrics), 1000):
        client.log_batch(run.info.run_id, metrics=metrics[start : start + 1000])
    client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def _own_tags(run: "Run") -> dict[str, str]:
    """Tags of a run but for MLflow's bookkeeping, which belongs to that run alone."""
    return {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}


if __name__ == "__main__":
    run_stage("cached_run", lambda: print(flow_run_record(sys.argv[1]), flush=True))
