"""`python -m flows.engine.cached_run FLOW_RUN_ID`, in a workspace at a flow run's end: prints its MLflow run's id.

That is the run that trained the model, where this flow run trained it; the line then ends with `trained`. Where DVC
restored the model, it is a second run that says `cached_from`, and the line ends with `restored`.
"""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

import sys

from gpt2core.storage.files import read_json
from gpt2ops import paths
from gpt2ops.process.stage import run_stage
from gpt2ops.tracking import api as tracking
from gpt2ops.tracking.store import connect


def flow_run_record(flow_run_id: str) -> str:
    """The MLflow run of this flow run, and how it has its model. Raises UserError where the store cannot be used."""
    trained = str(read_json(paths.RUN)["run_id"])
    client = connect()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    own = client.search_runs(experiments, f"tags.prefect_flow_run_id = '{flow_run_id}'", max_results=1)
    if not own:
        return f"{tracking.link_cached_run(trained, flow_run_id)} restored"
    return f"{own[0].info.run_id} {'restored' if 'cached_from' in own[0].data.tags else 'trained'}"


if __name__ == "__main__":
    run_stage("cached_run", lambda: print(flow_run_record(sys.argv[1]), flush=True))
