"""reports/samples.md, and the table of samples in the MLflow run."""

import re
from collections.abc import Mapping
from typing import Any

from gpt2core.storage.files import read_json
from gpt2ops.pipeline import paths
from gpt2ops.tracking.api import TrackedRun

TABLE = "samples/table.json"
# Metrics of a text and their titles.
COLUMNS = {
    "mean_log_prob": "mean log-probability",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "overlap_tokens": "longest overlap",
}


def log_samples(run: TrackedRun) -> None:
    """Log samples.json, samples.md and the table of texts."""
    for file in (paths.SAMPLES, paths.SAMPLES_PAGE):
        if file.exists():
            run.log_artifact(file, "samples")
    if paths.SAMPLES.exists():
        run.log_table(read_json(paths.SAMPLES)["samples"], TABLE)


def samples_page(samples: Mapping[str, Any]) -> str:
    """Markdown: the settings with their mean metrics, then all texts by prompt."""
    lines = ["# Samples", ""]
    memorised = [entry for entry in samples["samples"] if entry["memorised"]]
    if memorised:
        lines += [
            f"**Memorised texts: {len(memorised)} of {len(samples['samples'])}** (at least "
            f"{samples['memorised_tokens']} consecutive tokens of the training text).",
            "",
        ]
    lines += [f"| setting | {' | '.join(COLUMNS.values())} | options |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for name, setting in samples["settings"].items():
        of_setting = [entry for entry in samples["samples"] if entry["setting"] == name]
        options = ", ".join(f"{key}={value}" for key, value in setting.items())
        lines.append(f"| {name} | {' | '.join(_mean(of_setting, key) for key in COLUMNS)} | {options} |")
    lines += [
        "",
        f"Metrics are means over the texts of a setting. max_new_tokens is {samples['max_new_tokens']} and the seed is "
        f"{samples['seed']}, unless a setting has its own. The mean log-probability is that of the model itself, in "
        "nats per token. The longest overlap is the longest sequence of tokens that is also in the training text; long "
        "sequences of white space do not count.",
        "",
    ]
    prompt = None
    for entry in sorted(samples["samples"], key=lambda entry: _order(samples)[entry["prompt"]]):
        if entry["prompt"] != prompt:
            prompt = entry["prompt"]
            lines += [f"## {_heading(prompt) or '(start of a text)'}", ""]
        lines += [*_entry(entry), ""]
    return "\n".join(lines)


def _order(samples: Mapping[str, Any]) -> dict[str, int]:
    """Each prompt's position among the prompts."""
    return {prompt: place for place, prompt in enumerate(dict.fromkeys(e["prompt"] for e in samples["samples"]))}


def _entry(entry: Mapping[str, Any]) -> list[str]:
    seed = "" if entry["seed"] is None else f", seed {entry['seed']}"
    numbers = ", ".join(f"{name} {_number(entry[key])}" for key, name in COLUMNS.items())
    lines = [f"### {entry['setting']}{seed}", "", *_fenced(entry["prompt"] + entry["text"]), ""]
    lines += [f"{entry['tokens']} tokens, {numbers} tokens."]
    if entry["memorised"]:
        lines += ["", "**Memorised.** This part is also in the training text:", ""]
        lines += _fenced(entry["overlap_text"])
    return lines


def _fenced(text: str) -> list[str]:
    # Longer than any fence in the text, which must not end the block.
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return [f"{fence}text", text.strip("\n"), fence]


def _heading(prompt: str) -> str:
    """The prompt as a heading: one short line."""
    line = " ".join(prompt.split())
    return line if len(line) <= 80 else f"{line[:79]}…"


def _mean(entries: list[Mapping[str, Any]], key: str) -> str:
    values = [entry[key] for entry in entries if entry[key] is not None]
    return _number(sum(values) / len(values)) if values else _number(None)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"
