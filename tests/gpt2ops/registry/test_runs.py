"""The list of runs, from a real store."""

from pathlib import Path

from gpt2ops.registry.runs import list_runs
from gpt2ops.store.client import connect, experiment_id
from gpt2ops.store.run_params import CHANGED_LATER_TAG


def test_a_later_value_of_a_parameter_counts_and_a_tag_that_mlflow_cut_off_hides_no_run(project: Path) -> None:
    client = connect()
    for name, tag in (("changed", '{"train.learning_rate": "0.2"}'), ("cut", '{"train.learning_rate": "0.')):
        run = client.create_run(experiment_id(client, "gpt2"), run_name=name, tags={CHANGED_LATER_TAG: tag})
        client.log_param(run.info.run_id, "train.learning_rate", "0.1")
    found = {run.name: run.params["train.learning_rate"] for run in list_runs()}
    assert found == {"changed": "0.2", "cut": "0.1"}
