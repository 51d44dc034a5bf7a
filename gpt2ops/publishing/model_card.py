"""README.md of an exported model: metadata for the Hugging Face Hub, use, limits, scores and data."""

import re
from importlib.resources import files
from pathlib import PureWindowsPath
from typing import Any

from gpt2ops.process.redact import redact
from gpt2ops.publishing.model_facts import ModelFacts
from gpt2ops.registry.scoring.coverage import coverage_text, interval_text, split_score

TEMPLATE = files("gpt2ops.publishing") / "templates" / "model_card.md"
# Named corpora in English, and their names on the Hub.
_ENGLISH = {"bundled", "tinyshakespeare", "tinystories"}
_DATASETS = {"tinystories": "roneneldan/TinyStories"}
_SOURCES = {
    "bundled": "plays by Shakespeare",
    "tinyshakespeare": "Tiny Shakespeare",
    "tinystories": "TinyStories",
}
_SHOWN_SETTINGS = (
    "model.init",
    "model.preset",
    "train.optimizer",
    "train.learning_rate",
    "train.schedule",
    "train.batch_size",
    "train.sequence_length",
    "run.seed",
)
_VERDICTS = {
    "memorising": "**The model has memorised its training text.** Its output may repeat that text word for word.",
    "generalising": "No sign of memorisation was found.",
    "underfitting": "The model is no better than token frequencies.",
    "unknown": "No text was held out, so the loss on new text is not known.",
}


def model_card(
    facts: ModelFacts, *, repo_id: str, licence: str | None, language: str | None, dtype: str = "fp32"
) -> str:
    """The text of the card. `licence` is that of the weights, as an identifier of the Hub (mit, apache-2.0, ...)."""
    from huggingface_hub import ModelCard

    source = str(facts.data.get("source") or facts.settings.get("data.source") or "")
    card = ModelCard.from_template(
        _front_matter(facts, source, licence, language),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=facts.name,
        repo_id=repo_id,
        config=facts.config,
        parameters=facts.config.num_parameters,
        origin=_origin(facts),
        prompt="ROMEO." if source in ("bundled", "tinyshakespeare") else "Once upon a time",
        new_tokens=min(60, facts.config.block_size // 2),
        scores=_scores(facts),
        protocol="Measured with a sliding window. The interval is of the luck of the text: a bootstrap of its blocks."
        + (f" Measured before the weights were rounded to {dtype}." if dtype != "fp32" else ""),
        memory=_memory(facts),
        forgotten=_forgotten(facts),
        data=_data(facts),
        settings=[(key, without_folders(facts.settings[key])) for key in _SHOWN_SETTINGS if key in facts.settings],
        licence=_licence(facts, licence),
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def _front_matter(facts: ModelFacts, source: str, licence: str | None, language: str | None) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    held_out = facts.metrics.get(f"evaluate/{facts.held_out}_perplexity") if facts.held_out else None
    results = None
    if held_out is not None:
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=without_folders(source or "unknown").removeprefix("hf:"),
                dataset_name=f"{_source_name(source) or 'held-out text'} ({facts.held_out} split)",
                metric_type="perplexity",
                metric_value=round(held_out, 4),
            )
        ]
    dataset = source.removeprefix("hf:") if source.startswith("hf:") else _DATASETS.get(source)
    return ModelCardData(
        license=licence,
        language=language or ("en" if source in _ENGLISH else None),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", "text-generation", "causal-lm"],
        datasets=[dataset] if dataset else None,
        base_model=facts.base_model,
        model_name=facts.name,
        eval_results=results,
    )


def _origin(facts: ModelFacts) -> str:
    if facts.imported:
        return f"Its weights were imported from `{facts.imported.get('source')}` ({facts.imported.get('layout')})."
    if facts.base_model:
        return f"Fine-tuned from {facts.base_model}."
    return "Trained from scratch." if facts.settings.get("model.init") == "scratch" else ""


def _scores(facts: ModelFacts) -> list[str]:
    """A table row for each scored split."""
    rows = []
    names = {"train": "training", "val": "validation (held out)", "test": "test (held out)"}
    for split, title in names.items():
        found = [facts.metrics.get(f"evaluate/{split}_{name}") for name in ("loss", "perplexity", "bits_per_byte")]
        score = split_score(facts.metrics, split)
        accuracy = score.get("token_accuracy")
        if found[0] is None:
            continue
        cells = [title, *("" if value is None else f"{value:,.3f}" for value in found)]
        cells.insert(3, interval_text(score).removeprefix("95% interval "))
        cells += ["" if accuracy is None else f"{accuracy:.1%}", coverage_text(score).removesuffix(" tokens")]
        rows.append(" | ".join(cells))
    return rows


def _forgotten(facts: ModelFacts) -> str:
    found = [facts.metrics.get(f"evaluate/control_{name}") for name in ("loss_before", "loss_after", "loss_increase")]
    if any(value is None for value in found):
        return ""
    before, after, increase = found
    return (
        f"On a control text of another kind its loss was {before:.3f} nats per token before this training and "
        f"{after:.3f} after it ({increase:+.3f})."
    )


def _memory(facts: ModelFacts) -> str:
    recall = facts.metrics.get("evaluate/verbatim_recall")
    verdict = _VERDICTS.get(facts.verdict or "", "")
    if recall is None:
        return verdict or "Not measured. A model that was trained for long on little text may repeat it."
    measured = f"With greedy decoding it continued {recall:.0%} of the tested training passages word for word."
    return f"{verdict} {measured}".strip()


def _data(facts: ModelFacts) -> list[tuple[str, str]]:
    """Rows of the data sheet."""
    source = facts.data.get("source") or facts.settings.get("data.source")
    if not source:
        return []
    rows = [("Source", _source_name(str(source)))]
    rows += [("URL", redact(str(url))) for url in facts.data.get("urls", [])]
    rows.append(("Licence of the text", str(facts.data.get("licence") or "not stated")))
    if "size_bytes" in facts.data:
        rows.append(("Size", f"{facts.data['size_bytes']:,} bytes"))
    rows += [(f"Tokens, {split}", f"{count:,}") for split, count in facts.tokens.items()]
    files = facts.data.get("files", [])
    rows += [(f"sha256 of {entry['file']}", f"`{entry['sha256']}`") for entry in files[:3]]
    if len(files) > 3:
        rows.append(("More files", f"{len(files) - 3:,}"))
    return rows


def without_folders(name: str) -> str:
    """The last part of a path, so that the card does not show the folders of the training machine."""
    return PureWindowsPath(name).name if name.startswith(("/", "~", "..")) or name[1:3] == ":\\" else redact(name)


def _source_name(source: str) -> str:
    return _SOURCES.get(source) or without_folders(source)


def _licence(facts: ModelFacts, licence: str | None) -> str:
    text = facts.data.get("licence")
    of_text = (
        f" Licence of the training text: {text}."
        if text
        else " The licence of the training text is not stated; check it before use."
    )
    if licence:
        return f"Licence of the weights: {licence}.{of_text}"
    return f"No licence has been chosen for the weights; without one, others have no right to use them.{of_text}"
