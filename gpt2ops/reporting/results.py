"""The report's sections on results: verdict, scores, curves, samples, other runs."""

import math
from typing import Any

from gpt2ops.registry.scoring.coverage import certainty_text
from gpt2ops.reporting.blocks import (
    NONE,
    Block,
    Cell,
    Figures,
    Paragraph,
    Points,
    Row,
    Sample,
    Samples,
    Section,
    Table,
    count_text,
    duration_text,
    loss_text,
    perplexity_text,
    share_text,
    shortened,
    without_gaps,
)
from gpt2ops.reporting.charts import loss_figure, small_figures
from gpt2ops.reporting.inputs import Inputs
from gpt2ops.reporting.intervals import comparison_figure, interval_figure
from gpt2ops.reporting.runs import Comparison, OtherRun
from gpt2ops.training.references import published_for

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
MAX_PROMPTS = 3
MAX_CHARACTERS = 2000
MAX_DIFFERING = 6


def verdict_sentence(inputs: Inputs) -> str:
    """The evidence for the verdict."""
    train, held_out = inputs.score("train"), inputs.score(inputs.held_out)
    losses = f"training loss {loss_text(train.get('loss'))}, "
    losses += f"held-out loss {loss_text(held_out['loss'])}" if held_out else "no text was held out"
    recall = inputs.evaluation.get("verbatim_recall")
    if recall is None:
        return f"{losses}; verbatim recall of training passages was not measured"
    return f"{losses}; {share_text(recall)} of training passages are repeated word for word"


def tiles(inputs: Inputs) -> list[tuple[str, str, str]]:
    """The figures at the top: label, value, remark."""
    held_out, before = inputs.score(inputs.held_out), inputs.score(inputs.held_out, before=True)
    train, registered = inputs.train, inputs.registered
    found = []
    if held_out:
        was = f"{perplexity_text(before['perplexity'])} before training" if before else "on text not trained on"
        was = "; ".join(filter(None, [certainty_text(held_out), was]))
        found.append(("Held-out perplexity", perplexity_text(held_out["perplexity"]), was))
        gap = inputs.evaluation.get("generalisation_gap")
        found.append(("Generalisation gap", loss_text(gap), "held-out minus training loss, nats per token"))
    else:
        found.append(
            ("Training perplexity", perplexity_text(inputs.score("train").get("perplexity")), "no text held out")
        )
    recall = inputs.evaluation.get("verbatim_recall")
    if recall is not None:
        found.append(("Verbatim recall", share_text(recall), "of training passages repeated word for word"))
    speed = f"steps in {duration_text(train.get('wall_seconds'))}"
    found.append(("Training", count_text(train["steps"]), speed))
    found.append(
        (
            "Registry",
            str(registered.get("alias", "challenger")),
            f"{registered['name']} version {registered['version']}",
        )
    )
    return found


def scores(inputs: Inputs) -> Section:
    held_out = inputs.held_out
    columns: list[tuple[str, dict[str, Any]]] = []
    if held_out:
        columns.append(
            (f"{SPLIT_NAMES[held_out]} split, before training".capitalize(), inputs.score(held_out, before=True))
        )
        columns.append((f"{SPLIT_NAMES[held_out]} split".capitalize(), inputs.score(held_out)))
    for split in ("val", "train"):
        if split != held_out and (score := inputs.score(split)):
            columns.append((f"{SPLIT_NAMES[split]} split".capitalize(), score))
    measures = (
        ("Loss", "nats per token, ± standard error", "loss", loss_text),
        ("Perplexity", "95% interval", "perplexity", perplexity_text),
        ("Bits per byte", "", "bits_per_byte", loss_text),
        ("Token accuracy", "", "token_accuracy", lambda value: share_text(value, 1)),
        ("Tokens scored", "", "tokens", count_text),
    )
    rows = [
        Row([Cell(name, unit), *(Cell(written(score.get(key)), _detail(key, score)) for _, score in columns)])
        for name, unit, key, written in measures
    ]
    protocol = inputs.evaluation["protocol"]
    note = (
        f"Sliding windows of {protocol['block_size']:,} tokens, stride {protocol['stride']:,}. An interval is of the "
        f"luck of the text: a bootstrap of its blocks ({_block_unit(columns)}). The bars below show them."
    )
    caption = "Scores before and after training" if held_out else "Scores after training"
    blocks: list[Block] = [
        Table(caption, ["Measure", *(name for name, _ in columns)], rows, tuple(range(1, len(columns) + 1)), note)
    ]
    if bars := interval_figure([column for column in columns if "before" not in column[0]]):
        blocks.append(Figures([bars]))
    blocks.append(Paragraph(reference_sentence(inputs)))
    gate = inputs.registered["gate"]
    decision = "The model passed the registry gate." if gate.get("passed") else "The registry gate refused the model."
    blocks.append(Paragraph(" ".join([decision, *gate.get("reasons", [])])))
    if change := comparison_figure(inputs.registered.get("comparison") or {}):
        blocks.append(Figures([change]))
    return Section("scores", "Scores", blocks)


def _detail(key: str, score: dict[str, Any]) -> str:
    """What stands small below a score."""
    if key == "perplexity":
        low, high = score.get("perplexity_low"), score.get("perplexity_high")
        return "" if low is None or high is None else f"{perplexity_text(low)} to {perplexity_text(high)}"
    if key == "loss" and score.get("loss_stderr") is not None:
        return f"± {score['loss_stderr']:.3f}"
    if key == "tokens" and score.get("split_tokens") is not None:
        left = score["split_tokens"] - score["tokens"]
        return f"the first of {score['split_tokens']:,}" if left > 0 else "all"
    return ""


def _block_unit(columns: list[tuple[str, dict[str, Any]]]) -> str:
    units = dict.fromkeys(str(score["block_unit"]) for _, score in columns if score.get("block_unit"))
    return ", ".join(f"each a {unit}" if unit == "document" else f"each {unit}" for unit in units) or "not kept"


def reference_sentence(inputs: Inputs) -> str:
    """Losses to compare with."""
    vocab_size, unigram = inputs.config["vocab_size"], inputs.evaluation.get("unigram_loss")
    uniform = loss_text(math.log(vocab_size))
    said = f"For comparison: a uniform guess over {vocab_size:,} tokens has a loss of {uniform}"
    if unigram is not None:
        said += f", the token frequencies of the training text alone (unigram) {loss_text(unigram)}"
    known = published_for(inputs.train["n_params"], inputs.params.data.source)
    published = "; ".join(f"{entry.model} {entry.loss:.2f} on {entry.text}" for entry in known)
    return f"{said}. Published losses on held-out text: {published}."


def training(inputs: Inputs) -> Section:
    references = [("uniform", math.log(inputs.config["vocab_size"]))]
    if unigram := inputs.evaluation.get("unigram_loss"):
        references.append(("unigram", unigram))
    metric = inputs.params.train.stop.metric
    loss = loss_figure(inputs.history, inputs.train, references, metric)
    blocks: list[Block] = [Figures([loss])] if loss else [Paragraph("No loss of this run was finite.")]
    if small := small_figures(inputs.history, inputs.train):
        blocks.append(Figures(small, columns=2))
    if seeds := inputs.train.get("seeds"):
        blocks.append(seeds_table(seeds))
    return Section("training", "Training", blocks)


def seeds_table(seeds: dict[str, Any]) -> Table:
    """The results of several seeds, and how far they lie apart."""
    rows = [
        Row(
            [
                Cell(seed, "kept" if int(seed) == seeds["kept"] else ""),
                Cell(count_text(run["steps"])),
                Cell(_exact(run["train_loss"])),
                Cell(_exact(run["best_val_loss"])),
            ]
        )
        for seed, run in seeds["runs"].items()
    ]
    name = {"best_val_loss": "Best validation loss", "train_loss": "Training loss"}[seeds["by"]]
    note = (
        f"{name}: mean {_exact(seeds['mean'])}, standard deviation {_exact(seeds['stdev'])}. All other figures are "
        "those of the median, which was kept: the best of several would owe a part of its score to luck."
    )
    columns = ["Seed", "Steps", "Training loss", "Best validation loss"]
    return Table("The same settings with other seeds", columns, rows, (1, 2, 3), note)


def _exact(loss: float | None) -> str:
    """Seeds differ behind the second digit."""
    return NONE if loss is None else f"{loss:.4f}"


def samples(inputs: Inputs) -> Section:
    """For each of the first prompts: the text before training, and one text of each setting after it."""
    everything = inputs.samples["samples"]
    prompts = list(dict.fromkeys(entry["prompt"] for entry in everything))
    blocks: list[Block] = []
    shown = 0
    for prompt in prompts[:MAX_PROMPTS]:
        cards = [_before(entry) for entry in inputs.samples.get("before", []) if entry["prompt"] == prompt]
        of_prompt = [entry for entry in everything if entry["prompt"] == prompt]
        firsts = {entry["setting"]: entry for entry in reversed(of_prompt)}
        # The setting of the text before training comes first, so that the two stand side by side.
        same = next((entry["setting"] for entry in inputs.samples.get("before", [])), None)
        order = sorted(dict.fromkeys(entry["setting"] for entry in of_prompt), key=lambda name: name != same)
        cards += [_after(firsts[name]) for name in order]
        shown += len(order)
        title = " ".join(prompt.split())
        blocks.append(Samples(shortened(title, 80) or "(start of a text)", cards))
    memorised = sum(bool(entry.get("memorised")) for entry in everything)
    left = f" {len(everything) - shown} more are in reports/samples.md." if len(everything) > shown else ""
    said = (
        f"Texts with at least {inputs.samples.get('memorised_tokens')} consecutive tokens of the training text: "
        f"{memorised} of {len(everything)}."
    )
    intro = "Prompts are in bold. " + (said if memorised else "") + left
    return Section("samples", "Samples", [Paragraph(intro.strip()), *blocks])


def _before(entry: dict[str, Any]) -> Sample:
    return Sample(
        label=f"Before training, {_setting(entry)}",
        prompt=entry["prompt"],
        text=shortened(without_gaps(entry["text"]), MAX_CHARACTERS),
        note="Same prompt, decoding settings and seed as after training.",
        before=True,
    )


def _after(entry: dict[str, Any]) -> Sample:
    overlap = entry.get("overlap_tokens")
    warning = (
        f"Memorised: {overlap} consecutive tokens are also in the training text." if entry.get("memorised") else ""
    )
    return Sample(
        label=f"After training, {_setting(entry)}",
        prompt=entry["prompt"],
        text=shortened(without_gaps(entry["text"]), MAX_CHARACTERS),
        note=f"{entry['tokens']} tokens; longest overlap with the training text: {overlap} tokens.",
        warning=warning,
    )


def _setting(entry: dict[str, Any]) -> str:
    return entry["setting"] + (f", seed {entry['seed']}" if entry.get("seed") is not None else "")


def other_runs(inputs: Inputs, comparison: Comparison) -> Section:
    """This run, the latest ones of the experiment, and the champion."""
    name = inputs.registered["name"]
    if comparison.this is None:
        return Section("runs", "Other runs", [Paragraph(f"MLflow could not be read: {comparison.problem}.")])
    split = inputs.held_out or "train"
    kind = "Held-out" if inputs.held_out else "Training"
    rows = [_run_row(comparison.this, name, "This run")]
    rows += [_run_row(run, name, _differences(run)) for run in comparison.others]
    note = (
        f"Scores on the {SPLIT_NAMES[split]} split, as each run measured them, newest first, when this report was made."
    )
    if any(not run.same_data for run in comparison.others):
        note += " The scores of runs on other data are not comparable."
    table = Table(
        f"This run and the latest of experiment {inputs.params.run.experiment}",
        [
            "Run",
            f"{kind} perplexity",
            f"{kind} loss",
            "Training loss",
            "Verbatim recall",
            "Steps",
            "Different settings",
        ],
        rows,
        (1, 2, 3, 4, 5),
        note,
    )
    points = []
    if comparison.champion is None:
        points.append(f"No version of {name} is champion.")
    elif comparison.this.champion:
        points.append(f"This run's model is the champion: {name} version {comparison.champion}.")
    else:
        points.append(f"The champion is {name} version {comparison.champion}.")
    if not comparison.others:
        points.append("There is no other finished run in this experiment yet.")
    return Section("runs", "Other runs", [table, Points(points)])


def _run_row(run: OtherRun, model_name: str, remark: str) -> Row:
    date = f"{run.started_at:%Y-%m-%d %H:%M} UTC, " if run.started_at else ""
    champion_note = f" (champion, version {run.champion})" if run.champion else ""
    other_data = "" if run.same_data else "other data"
    return Row(
        [
            Cell(run.name + champion_note, f"{date}{run.run_id}", run.link),
            Cell(perplexity_text(run.perplexity), "; ".join(filter(None, [run.certainty, other_data]))),
            Cell(loss_text(run.loss)),
            Cell(loss_text(run.train_loss)),
            Cell(share_text(run.recall)),
            Cell(count_text(run.steps)),
            Cell(remark),
        ],
        marked=run.champion is not None,
    )


def _differences(run: OtherRun) -> str:
    if not run.differing:
        return "none"
    parts = [
        f"{key} {shortened(theirs, 60)} (here {shortened(ours, 60)})"
        for key, theirs, ours in run.differing[:MAX_DIFFERING]
    ]
    left = len(run.differing) - len(parts)
    return "; ".join([*parts, f"{left} more"] if left else parts)
