"""What the stage `evaluate` measures: scores of each split, verbatim recall, the verdict, and the losses by block."""

import sys
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from gpt2core.data.tokens import TokenSet
from gpt2core.evaluation.blocks import BlockLosses
from gpt2core.evaluation.scores import Score, evaluate, unigram_loss, verbatim_recall, verdict
from gpt2core.model import GPT
from gpt2core.runtime import Runtime
from gpt2core.tokenizer import Tokenizer
from gpt2ops.params.schema import Params
from gpt2ops.process.console import say
from gpt2ops.registry.scoring.coverage import certainty_text, forgetting_text, tokens_to_score
from gpt2ops.registry.scoring.entry import score_entry, too_short
from gpt2ops.registry.scoring.forgetting import control_file, forgetting
from gpt2ops.registry.scoring.gate_score import gate_entry
from gpt2ops.registry.scoring.losses_file import GATE
from gpt2ops.training.initial_model import initial_model

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Scorer:
    """Scores the first `tokens[split]` tokens of a split."""

    params: Params
    run: Runtime
    corpus: TokenSet
    tokens: dict[str, int]

    def score(self, model: GPT, name: str) -> Score | None:
        if self.tokens[name] < 2:
            return None
        total, hidden = self.tokens[name], not sys.stderr.isatty()
        with tqdm(total=total, desc=name, unit="token", delay=2, disable=hidden) as bar, self.run.autocast():
            return evaluate(
                model,
                self.corpus.split(name),
                block_size=model.config.block_size,
                stride=stride_of(self.params, model),
                batch_size=self.params.evaluate.batch_size,
                max_tokens=total,
                device=self.run.device,
                token_lengths=Tokenizer().token_lengths(),
                on_tokens=lambda count: bar.update(count),
            )

    def entry(self, name: str, score: Score | None) -> dict[str, Any] | None:
        """What evaluate.json says of a score."""
        return None if score is None else score_entry(score, self.tokens[name], len(self.corpus.split(name)))


def evaluate_model(
    params: Params, model: GPT, corpus: TokenSet, run: Runtime, trained_tokens: int
) -> tuple[dict[str, Any], dict[str, BlockLosses]]:
    """The content of evaluate.json, and the losses by block of each split and of the gate.

    `trained_tokens` are those that the training saw: it decides how much text `evaluate.max_tokens: auto` scores.
    """
    settings, stride = params.evaluate, stride_of(params, model)
    sizes = {name: len(corpus.split(name)) for name in SPLITS}
    held_out = next((name for name in ("test", "val") if sizes[name] > 1), None)
    gate_tokens = min(sizes[held_out], settings.gate_tokens or sizes[held_out]) if held_out else 0
    overlap = model.config.block_size / stride
    tokens = tokens_to_score(
        settings.max_tokens, sizes, overlap=overlap, gate_tokens=gate_tokens, trained_tokens=trained_tokens
    )
    scorer = Scorer(params, run, corpus, tokens)
    say(f"scoring with sliding windows on {run.device}, {run.precision}: {plan_text(tokens, sizes)}")
    scores = {name: scorer.score(model, name) for name in SPLITS}
    losses = {name: found.blocks for name, found in scores.items() if found is not None}
    before, gate, forgotten, control = {}, None, None, control_file(params)
    if held_out is not None or control is not None:
        say("scoring the model before training ...")
        start = initial_model(params).eval().to(run.device)
        forgotten = forgetting(control, params, start, model, run.device) if control else None
    if held_out is not None:
        before[held_out] = scorer.entry(held_out, scorer.score(start, held_out))
        gate, by_gate = gate_entry(model, corpus, held_out, settings.gate_tokens, settings.batch_size, run.device)
        losses[GATE] = by_gate.blocks
    result = {name: scorer.entry(name, scores[name]) for name in SPLITS}
    say("measuring verbatim recall of the training text ...")
    recall = verbatim_recall(
        model,
        corpus.split("train"),
        passages=settings.recall_passages,
        prompt_tokens=settings.recall_prompt_tokens,
        continuation_tokens=settings.recall_continuation_tokens,
        device=run.device,
    )
    unigram = unigram_loss(corpus.split("train"))
    train = scores["train"]
    assert train is not None, "finetune needs training tokens"
    held_out_score = scores[held_out] if held_out else None
    held_out_loss = held_out_score.loss if held_out_score else None
    return {
        **result,
        "before": before,
        "held_out": held_out,
        "generalisation_gap": held_out_loss - train.loss if held_out_loss is not None else None,
        "verbatim_recall": recall,
        "unigram_loss": unigram,
        "verdict": verdict(train.loss, held_out_loss, recall, unigram),
        "protocol": {"block_size": model.config.block_size, "stride": stride, "max_tokens": settings.max_tokens},
        "gate": gate,
        "forgetting": forgotten,
        "data_sha256": corpus.manifest["sha256"],
    }, losses


def stride_of(params: Params, model: GPT) -> int:
    return min(params.evaluate.stride or max(1, model.config.block_size // 2), model.config.block_size)


def plan_text(tokens: dict[str, int], sizes: dict[str, int]) -> str:
    return "; ".join(
        f"{name} {'all' if tokens[name] == sizes[name] else f'the first {tokens[name]:,} of'} {sizes[name]:,} tokens"
        for name in SPLITS
        if sizes[name] > 1
    )


def result_lines(result: dict[str, Any]) -> list[str]:
    """The result for the log; what cannot be said has a line of its own."""
    held_out, forgotten = result["held_out"], result["forgetting"]
    last = [forgetting_text(forgotten)] if forgotten else []
    if not held_out:
        return [*last, "no text was held out (data.split gives val and test none): there is no held-out perplexity"]
    after, before = result[held_out], result["before"][held_out]["perplexity"]
    about = f"{certainty_text(after)}; before training {before:.1f}"
    lines = [f"perplexity on {held_out}: {after['perplexity']:.1f} ({about})"]
    if after["perplexity_low"] is None:
        lines.append(f"{held_out} has no interval: {too_short(after)}")
    return lines + last
