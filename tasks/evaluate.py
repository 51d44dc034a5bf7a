"""Stage `evaluate`: models/best + data/tokens -> reports/metrics/evaluate.json, reports/block_losses.safetensors."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process(large_tensors=True)

from gpt2core.data.tokens import open_tokens
from gpt2core.runtime import pick_runtime, set_threads
from gpt2core.storage.files import write_json
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.final_metrics import evaluation_metrics
from gpt2ops.pipeline.results import read_report
from gpt2ops.process.console import say
from gpt2ops.process.stage import run_stage
from gpt2ops.registry.scoring.losses_file import write_losses
from gpt2ops.registry.scoring.run import evaluate_model, result_lines
from gpt2ops.tracking.api import tracked_run
from gpt2ops.training.initial_model import best_model


def main() -> None:
    params = load_params()
    set_threads(params.run.threads)
    run = pick_runtime(params.run.device, params.run.precision)
    trained_tokens = read_report(paths.TRAIN_METRICS, "finetune", ("tokens_seen",))["tokens_seen"]
    tokens = open_tokens(paths.TOKENS)
    tokens.verify()
    with tracked_run() as tracked:
        result, losses = evaluate_model(params, best_model().to(run.device), tokens, run, trained_tokens)
        write_json(paths.EVALUATE_METRICS, result)
        write_losses(paths.BLOCK_LOSSES, losses, result["gate"])
        tracked.log_metrics(evaluation_metrics(result))
    for line in result_lines(result):
        say(line)
    say(f"verdict: {result['verdict']}")


if __name__ == "__main__":
    run_stage("evaluate", main)
