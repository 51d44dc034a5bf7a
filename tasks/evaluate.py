"""Stage `evaluate`: models/best + data/tokens -> reports/metrics/evaluate.json."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process(large_tensors=True)

import sys
from typing import Any

from tqdm import tqdm

from gpt2core.data.tokens import TokenSet, TokenSplit, open_tokens
from gpt2core.evaluation.scores import Score, evaluate, unigram_loss, verbatim_recall, verdict
from gpt2core.model import GPT
from gpt2core.runtime import Runtime, pick_runtime, set_threads
from gpt2core.storage.files import write_json
from gpt2core.tokenizer import Tokenizer
from gpt2ops.params.schema import Params, load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.final_metrics import evaluation_metrics
from gpt2ops.process.console import say
from gpt2ops.process.stage import run_stage
from gpt2ops.registry.gate_score import gate_entry
from gpt2ops.tracking.api import tracked_run
from gpt2ops.training.initial_model import best_model, initial_model

SPLITS = ("train", "val", "test")


def main() -> None:
    params = load_params()
    set_threads(params.run.threads)
    run = pick_runtime(params.run.device, params.run.precision)
    tokens = open_tokens(paths.TOKENS)
    tokens.verify()
    with tracked_run() as tracked:
        result = evaluate_model(params, tokens, run)
        write_json(paths.EVALUATE_METRICS, result)
        tracked.log_metrics(evaluation_metrics(result))
    held_out = result["held_out"]
    if held_out:
        after, before = result[held_out]["perplexity"], result["before"][held_out]["perplexity"]
        say(f"perplexity on {held_out}: {after:.1f} (before training: {before:.1f})")
    say(f"verdict: {result['verdict']}")


def evaluate_model(params: Params, tokens: TokenSet, run: Runtime) -> dict[str, Any]:
    """Scores of each split, of the held-out one also before training, verbatim recall, and the verdict."""
    model = best_model().to(run.device)
    say(f"scoring train, val and test with sliding windows on {run.device}, {run.precision} ...")
    scores = {name: score(model, tokens.split(name), params, run) for name in SPLITS}
    held_out = next((name for name in ("test", "val") if scores[name] is not None), None)
    before = {}
    if held_out is not None:
        say("scoring the model before training ...")
        start = initial_model(params).eval().to(run.device)
        before[held_out] = score(start, tokens.split(held_out), params, run)
    say("measuring verbatim recall of the training text ...")
    recall = verbatim_recall(
        model,
        tokens.split("train"),
        passages=params.evaluate.recall_passages,
        prompt_tokens=params.evaluate.recall_prompt_tokens,
        continuation_tokens=params.evaluate.recall_continuation_tokens,
        device=run.device,
    )
    unigram = unigram_loss(tokens.split("train"))
    train = scores["train"]
    assert train is not None, "finetune needs training tokens"
    held_out_score = scores[held_out] if held_out else None
    held_out_loss = held_out_score.loss if held_out_score else None
    return {
        **{name: as_dict(scores[name]) for name in SPLITS},
        "before": {name: as_dict(value) for name, value in before.items()},
        "held_out": held_out,
        "generalisation_gap": held_out_loss - train.loss if held_out_loss is not None else None,
        "verbatim_recall": recall,
        "unigram_loss": unigram,
        "verdict": verdict(train.loss, held_out_loss, recall, unigram),
        "protocol": {
            "block_size": model.config.block_size,
            "stride": stride_of(params, model),
            "max_tokens": params.evaluate.max_tokens,
        },
        "gate": gate_entry(model, tokens, held_out, params.evaluate.batch_size, run.device),
        "data_sha256": tokens.manifest["sha256"],
    }


def score(model: GPT, split: TokenSplit, params: Params, run: Runtime) -> Score | None:
    total = min(len(split), params.evaluate.max_tokens or len(split))
    with (
        tqdm(total=total, desc=split.name, unit="token", delay=2, disable=not sys.stderr.isatty()) as bar,
        run.autocast(),
    ):
        return evaluate(
            model,
            split,
            block_size=model.config.block_size,
            stride=stride_of(params, model),
            batch_size=params.evaluate.batch_size,
            max_tokens=params.evaluate.max_tokens,
            device=run.device,
            token_lengths=Tokenizer().token_lengths(),
            on_tokens=lambda count: bar.update(count),
        )


def stride_of(params: Params, model: GPT) -> int:
    return min(params.evaluate.stride or max(1, model.config.block_size // 2), model.config.block_size)


def as_dict(score: Score | None) -> dict[str, Any] | None:
    return score.as_dict() if score is not None else None


if __name__ == "__main__":
    run_stage("evaluate", main)
