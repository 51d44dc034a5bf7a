"""The samples for a reader: reports/samples.md, and the table in the MLflow run."""

from collections.abc import Mapping
from typing import Any

from gpt2core.storage.files import read_json
from gpt2ops import paths
from gpt2ops.tracking.api import TrackedRun

TABLE = "samples/table.json"
# What the table shows of a text, and as what.
COLUMNS = {
    "mean_log_prob": "mean log-probability",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "overlap_tokens": "longest overlap",
}


def log_samples(run: TrackedRun) -> None:
    """Both files and the table of the texts into the run."""
    for file in (paths.SAMPLES, paths.SAMPLES_PAGE):
        if file.exists():
            run.log_artifact(file, "samples")
    if paths.SAMPLES.exists():
        run.log_table(read_json(paths.SAMPLES)["samples"], TABLE)


def samples_page(samples: Mapping[str, Any]) -> str:
    """Markdown: the settings, the numbers of each setting, and every text under its prompt."""
    lines = ["# Samples", ""]
    memorised = [entry for entry in samples["samples"] if entry["memorised"]]
    if memorised:
        lines += [
            f"**{len(memorised)} of {len(samples['samples'])} texts are memorised**: they share "
            f"{samples['memorised_tokens']} tokens in a row or more with the training text.",
            "",
        ]
    lines += [f"| setting | {' | '.join(COLUMNS.values())} | |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    for name, setting in samples["settings"].items():
        of_setting = [entry for entry in samples["samples"] if entry["setting"] == name]
        options = ", ".join(f"{key} {value}" for key, value in setting.items())
        lines.append(f"| {name} | {' | '.join(_mean(of_setting, key) for key in COLUMNS)} | {options} |")
    lines += [
        "",
        f"Means over a setting's texts. At most {samples['max_new_tokens']} tokens, seed {samples['seed']}, unless a "
        "setting has its own. The mean log-probability is in nats a token, by the model itself; the longest overlap is "
        "the longest run of tokens that stands word for word in the training text, long runs of blanks left out.",
        "",
    ]
    prompt = None
    for entry in sorted(samples["samples"], key=lambda entry: _places(samples)[entry["prompt"]]):
        if entry["prompt"] != prompt:
            prompt = entry["prompt"]
            lines += [f"## {_plain(prompt) or '(start of a text)'}", ""]
        lines += [*_entry(entry), ""]
    return "\n".join(lines)


def _places(samples: Mapping[str, Any]) -> dict[str, int]:
    """Where each prompt comes first."""
    return {prompt: place for place, prompt in enumerate(dict.fromkeys(e["prompt"] for e in samples["samples"]))}


def _entry(entry: Mapping[str, Any]) -> list[str]:
    seed = "" if entry["seed"] is None else f", seed {entry['seed']}"
    numbers = ", ".join(f"{name} {_number(entry[key])}" for key, name in COLUMNS.items())
    lines = [f"### {entry['setting']}{seed}", "", *_fenced(entry["prompt"] + entry["text"]), ""]
    lines += [f"{entry['tokens']} tokens, {numbers} tokens."]
    if entry["memorised"]:
        lines += ["", "**Memorised.** This stands word for word in the training text:", ""]
        lines += _fenced(entry["overlap_text"])
    return lines


def _fenced(text: str) -> list[str]:
    # Longer fences than any in the text: a sample must not end its own block.
    fence = "`" * max(3, 1 + _longest_run(text, "`"))
    return [f"{fence}text", text.strip("\n"), fence]


def _plain(prompt: str) -> str:
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


def _longest_run(text: str, character: str) -> int:
    longest = current = 0
    for other in text:
        current = current + 1 if other == character else 0
        longest = max(longest, current)
    return longest
