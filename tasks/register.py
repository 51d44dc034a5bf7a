"""Stage `register`: models/best + metrics -> model versions, aliases, reports/registered.json."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

from gpt2core.storage.files import sha256_file, write_json
from gpt2core.storage.hf import WEIGHTS
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.results import read_report
from gpt2ops.process.stage import run_stage
from gpt2ops.process.temporary import own_temporary_files
from gpt2ops.registry.register import register
from gpt2ops.store.client import fluent_mlflow
from gpt2ops.tracking.api import tracked_run
from gpt2ops.training.initial_model import check_best_model


def main() -> None:
    params = load_params()
    evaluation = read_report(paths.EVALUATE_METRICS, "evaluate", ("held_out", "verdict", "gate"))
    train = read_report(paths.TRAIN_METRICS, "finetune", ("target_reached",))
    check_best_model()
    with own_temporary_files("register"), tracked_run(wait=False) as run, fluent_mlflow():
        registered = register(params, run, evaluation, train, sha256_file(paths.BEST_MODEL / WEIGHTS))
        write_json(paths.REGISTERED, registered)
        run.log_artifact(paths.REGISTERED, "reports")


if __name__ == "__main__":
    run_stage("register", main)
