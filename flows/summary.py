"""What a flow run shows at its end: the numbers, the verdict and the curves, as one page of Markdown."""

import base64
from pathlib import Path
from typing import Any

from gpt2core.files import read_json
from tasks import paths


def collect(workspace: Path) -> dict[str, Any]:
    """The run's reports: `train`, `evaluate`, `registered`; empty where a stage wrote none."""
    files = {"train": paths.TRAIN_METRICS, "evaluate": paths.EVALUATE_METRICS, "registered": paths.REGISTERED}
    return {name: read_json(workspace / file) if (workspace / file).is_file() else {} for name, file in files.items()}


def markdown(reports: dict[str, Any], *, run_id: str, trained_now: bool, picture: Path | None) -> str:
    train, registered = reports["train"], reports["registered"]
    rows: list[tuple[str, Any]] = [
        ("train_loss", train.get("train_loss")),
        ("best_train_loss", train.get("best_train_loss")),
        ("train_loss_full", train.get("train_loss_full")),
        ("best_val_loss", train.get("best_val_loss")),
        ("target_loss", train.get("target_loss")),
        ("target_reached", train.get("target_reached")),
        ("stop_reason", train.get("stop_reason")),
        ("steps", train.get("steps")),
        ("tokens_per_second", train.get("tokens_per_second")),
        *_perplexities(reports["evaluate"]),
        ("registered model", _model(registered)),
        ("verdict", _verdict(registered)),
    ]
    table = "\n".join(f"| {name} | {_show(value)} |" for name, value in rows if value is not None)
    origin = "trained by this flow run" if trained_now else "restored by DVC: the inputs had not changed"
    parts = [f"# Fine-tuning\n\nMLflow run `{run_id}`, {origin}.", f"| | |\n|---|---|\n{table}"]
    reasons = registered.get("reasons") or []
    if reasons:
        parts.append("\n".join(f"- {reason}" for reason in reasons))
    if picture is not None:
        data = base64.b64encode(picture.read_bytes()).decode("ascii")
        parts.append(f"![curves](data:image/png;base64,{data})")
    return "\n\n".join(parts) + "\n"


def picture(workspace: Path) -> Path | None:
    """The plot of the losses, else the first one."""
    plots = sorted((workspace / paths.PLOTS).glob("*.png"))
    return next((plot for plot in plots if plot.stem == "loss"), plots[0] if plots else None)


def _perplexities(evaluation: dict[str, Any]) -> list[tuple[str, Any]]:
    splits = evaluation.get("splits", evaluation)
    return [
        (f"{split} perplexity", splits[split].get("perplexity"))
        for split in ("train", "val", "test")
        if isinstance(splits.get(split), dict)
    ]


def _model(registered: dict[str, Any]) -> str | None:
    if not registered:
        return None
    alias = registered.get("alias")
    return f"{registered.get('name')} version {registered.get('version')}" + (f", {alias}" if alias else "")


def _verdict(registered: dict[str, Any]) -> Any:
    return registered.get("verdict")


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value).replace("|", "\\|")
