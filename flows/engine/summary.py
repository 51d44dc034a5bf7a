"""The summary of a flow run as one Markdown page: metrics, verdict and curves."""

import base64
from pathlib import Path
from typing import Any

from gpt2core.storage.files import read_json
from gpt2ops.pipeline import paths
from gpt2ops.registry.scoring.coverage import certainty_text

_TRAIN_ROWS = (
    "train_loss",
    "best_train_loss",
    "train_loss_full",
    "best_val_loss",
    "target_loss",
    "target_reached",
    "stop_reason",
    "steps",
    "tokens_per_second",
)


def collect(workspace: Path) -> dict[str, Any]:
    """The run's reports `train`, `evaluate` and `registered`; empty for a stage that wrote none."""
    files = {"train": paths.TRAIN_METRICS, "evaluate": paths.EVALUATE_METRICS, "registered": paths.REGISTERED}
    return {name: read_json(workspace / file) if (workspace / file).is_file() else {} for name, file in files.items()}


def markdown(reports: dict[str, Any], *, run_id: str, trained_now: bool, picture: Path | None) -> str:
    """The page; a metric that the run does not have (no target, no held-out split) has no row."""
    train, evaluation, registered = reports["train"], reports["evaluate"], reports["registered"]
    before = evaluation.get("before", {})
    rows: list[tuple[str, Any]] = [(name, train.get(name)) for name in _TRAIN_ROWS]
    for split in ("train", "val", "test"):
        score = evaluation.get(split) or {}
        rows.append((f"{split} perplexity", score.get("perplexity")))
        said = certainty_text(score)
        rows.append((f"{split} perplexity, luck and text", said or None))
        rows.append((f"{split} perplexity before training", (before.get(split) or {}).get("perplexity")))
    rows.append(("verbatim_recall", evaluation.get("verbatim_recall")))
    rows.append(("verdict", evaluation.get("verdict")))
    gate = registered.get("gate") or {}
    if registered:
        rows.append(
            ("registered model", f"{registered['name']} version {registered['version']}, {registered['alias']}")
        )
        rows.append(("gate", "passed" if gate.get("passed") else "refused"))
    table = "\n".join(f"| {name} | {_show(value)} |" for name, value in rows if value is not None)
    origin = "trained by this flow run" if trained_now else "restored by DVC: the inputs had not changed"
    parts = [f"# Fine-tuning\n\nMLflow run `{run_id}`, {origin}.", f"| | |\n|---|---|\n{table}"]
    if gate.get("reasons"):
        parts.append("\n".join(f"- {reason}" for reason in gate["reasons"]))
    if picture is not None:
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        parts.append(f"![curves](data:image/png;base64,{data})")
    return "\n\n".join(parts) + "\n"


def picture(workspace: Path) -> Path | None:
    """The plot of the losses, else the first plot; None without plots."""
    plots = sorted((workspace / paths.PLOTS).glob("*.png"))
    return next((plot for plot in plots if plot.stem == "loss"), plots[0] if plots else None)


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value).replace("|", "\\|")
