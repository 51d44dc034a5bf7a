"""`python -m gpt2ops.reporting.summary`: the results of a finished pipeline, their files and the next commands."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2core.errors import UserError
from gpt2ops.params.schema import load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.pipeline.results import read_report
from gpt2ops.process.console import say
from gpt2ops.process.redact import redact
from gpt2ops.process.stage import run_stage
from gpt2ops.registry.scoring.coverage import certainty_text
from gpt2ops.store.address import is_local, tracking_uri

VERDICTS = {
    "generalising": "the model has learned from its training text and rarely repeats it word for word",
    "memorising": "the model has memorised its training text; use more text, or stop earlier",
    "underfitting": "the model is no better than token frequencies; train longer, or with a higher learning rate",
    "unknown": "no text was held out, so the loss on new text is not known",
}
STOPS = {True: "reached", False: "missed"}


def print_summary() -> None:
    """Raises UserError if the working directory has no reports, or damaged ones."""
    say("\n".join(summary_lines()))


def summary_lines() -> list[str]:
    train = _report(paths.TRAIN_METRICS, "finetune")
    evaluation = _report(paths.EVALUATE_METRICS, "evaluate")
    registered = _report(paths.REGISTERED, "register")
    try:
        return _boxed(_rows(train, evaluation, registered))
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        raise UserError(
            f"a report of the last run is damaged ({paths.TRAIN_METRICS}, {paths.EVALUATE_METRICS} or "
            f"{paths.REGISTERED}): run the pipeline again with `dvc repro`."
        ) from None


def _rows(
    train: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None, registered: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    if not train:
        raise UserError(f"{paths.TRAIN_METRICS} is missing: there is no finished run yet; start one with `dvc repro`.")
    rows = [("training", _training(train))]
    if evaluation:
        rows += _evaluation(evaluation)
    if registered:
        rows.append(("model", _model(registered)))
        rows.append(("gate", " ".join(registered["gate"]["reasons"])))
    if os.environ.get("GPT2_FLOW_RUN_ID"):  # the flow run's folder is removed at its end
        model = f"models:/{registered['name']}/{registered['version']}" if registered else str(paths.BEST_MODEL)
        rows.append(("report", f"{paths.REPORT_PAGE.name} and {paths.REPORT_PDF.name}, artifacts of its MLflow run"))
        rows.append(("generate", generate_command(model)))
        return rows
    # `gpt2 finetune` copies the model and the reports to its --output-dir.
    output = os.environ.get("GPT2_OUTPUT_DIR")
    report, project = (output, f"{output}/project/") if output else (paths.REPORT_PAGE.parent.as_posix(), "")
    if paths.REPORT_PAGE.exists():
        rows.append(("report", f"{report}/{paths.REPORT_PAGE.name}, and the same as {paths.REPORT_PDF.name}"))
    more = (
        f"{report}/{paths.SAMPLES_PAGE.name} (samples), {project}{paths.PLOTS}/ (curves), {project}{paths.LOGS}/ (log)"
    )
    rows.append(("more", more))
    rows.append(("generate", generate_command(output or str(paths.BEST_MODEL))))
    rows.append(("MLflow UI", ui_command()))
    return rows


def generate_command(model: str) -> str:
    prompt = next(iter(load_params().sample.prompts), "")
    quoted = f'"{prompt}"' if re.fullmatch(r"[\w .,:;?'-]*", prompt) else shlex.quote(prompt)
    return f"gpt2 generate --model {shlex.quote(model)} --prompt {quoted}"


def _boxed(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(title) for title, _ in rows)
    rule = "─" * 78
    return [rule, *(f"  {title:<{width}}  {text}" for title, text in rows), rule]


def ui_command() -> str:
    """The line that opens the project's MLflow store."""
    uri = tracking_uri()
    if uri.startswith("http"):
        return f"open {redact(uri)}"
    if is_local():
        here = mlruns().parent == Path.cwd().resolve() or "GPT2_OUTPUT_DIR" in os.environ
        uri = f"sqlite:///{((paths.MLRUNS if here else mlruns()) / 'mlflow.db').as_posix()}"
    return f"mlflow ui --backend-store-uri {redact(uri)}   then http://127.0.0.1:5000"


def _training(train: Mapping[str, Any]) -> str:
    parts = [f"{train['steps']:,} steps, {train['tokens_seen']:,} tokens in {_duration(train.get('wall_seconds'))}"]
    for key, meaning in (("train_loss_full", "over a full pass"), ("train_loss", "on average over the last steps")):
        if (loss := train.get(key)) is not None:
            parts.append(f"train loss {loss:.3f} {meaning}")
            break
    if (target := train.get("target_loss")) is not None:
        parts.append(f"target {target:g} {STOPS[bool(train.get('target_reached'))]}")
    return "; ".join(parts)


def _evaluation(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    scores = [
        f"{split} {evaluation[split]['perplexity']:.1f}{_certainty(evaluation[split])}"
        for split in ("train", "val", "test")
        if (evaluation.get(split) or {}).get("perplexity") is not None
    ]
    recall = evaluation.get("verbatim_recall")
    recalled = [f"{recall:.0%} of training passages repeated word for word"] if recall is not None else []
    verdict = str(evaluation.get("verdict", "unknown"))
    return [
        *((name, score) for name, score in zip(["perplexity", "", ""], scores, strict=False)),
        *(("recall", text) for text in recalled),
        ("verdict", f"{verdict}: {VERDICTS.get(verdict, VERDICTS['unknown'])}"),
    ]


def _certainty(score: Mapping[str, Any]) -> str:
    said = certainty_text(score)
    return f" ({said})" if said else ""


def _model(registered: Mapping[str, Any]) -> str:
    name, version, alias = registered["name"], registered["version"], registered["alias"]
    text = f"{registered['text_name']} version {registered['text_version']}"
    return f"{name} version {version} ({alias}), {text}; models:/{name}@{alias}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _report(path: Path, stage: str) -> dict[str, Any] | None:
    return read_report(path, stage, ()) if path.exists() else None


if __name__ == "__main__":
    run_stage("summary", print_summary)
