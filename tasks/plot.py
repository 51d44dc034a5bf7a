"""Stage `plot`: reports/training_history.json -> reports/plots/*.png."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

from gpt2core.storage.files import replaced_directory
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.results import read_report, read_rows
from gpt2ops.process.console import say
from gpt2ops.process.stage import run_stage
from gpt2ops.reporting.plots import save_plots
from gpt2ops.tracking.api import tracked_run


def main() -> None:
    load_params()
    history = read_rows(paths.HISTORY, "finetune")
    metrics = read_report(
        paths.TRAIN_METRICS, "finetune", ("target_loss", "target_reached", "stop_reason", "n_params", "steps")
    )
    with tracked_run() as tracked:
        say("drawing the curves ...")
        with replaced_directory(paths.PLOTS) as plots:
            save_plots(history, metrics, plots)
        tracked.log_artifacts(paths.PLOTS, "plots")


if __name__ == "__main__":
    run_stage("plot", main)
