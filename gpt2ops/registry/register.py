"""Registers a run's model: model versions, the decision of the gate, aliases."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core.errors import UserError
from gpt2core.storage.files import sha256_file
from gpt2ops.params.schema import Params
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.registry.champion import make_champion, registry_lock
from gpt2ops.registry.champion_score import LOSSES_FOLDER, find_champion
from gpt2ops.registry.download import BEST_CHECKPOINT
from gpt2ops.registry.gate import GateDecision, judge
from gpt2ops.registry.held_out import HeldOut, held_out_of
from gpt2ops.registry.scoring.losses_file import read_losses
from gpt2ops.registry.trained_text import FOLDER, log_passages
from gpt2ops.registry.versions import (
    FreshProcess,
    Versions,
    create_version,
    find_version,
    log_models,
    logged_model_of,
    write_expected,
)
from gpt2ops.sampling.page import log_samples
from gpt2ops.store.errors import one_line
from gpt2ops.tracking.api import TrackedRun

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    Found = tuple[ModelVersion | None, ModelVersion | None]  # of the model, and of the text model


def register(
    params: Params, run: TrackedRun, evaluation: Mapping[str, Any], train: Mapping[str, Any], weights_sha256: str
) -> dict[str, Any]:
    """Register models/best and apply the gate; returns the content of registered.json."""
    name, text_name = params.register_.name, params.register_.text_name
    held_out = held_out_of(evaluation)
    losses = read_losses(paths.BLOCK_LOSSES).compared if held_out is not None else None
    tags = version_tags(evaluation, held_out, weights_sha256)
    found = find_versions(run, params, weights_sha256)
    if found[0] is None or found[1] is None:
        versions = make_versions(run, params, tags, found)
    else:
        versions = Versions(str(found[0].version), str(found[1].version))
        say(f"{name} version {versions.version} has these weights already; applying the gate again")
        log_run_artifacts(run)
    with registry_lock():
        champion = find_champion(run.client, name, versions, run.run_id, evaluation)
        decision = judge(evaluation, train, champion, params.register_.gate, losses)
        is_champion = decision.passed or (champion is not None and champion.same_version)
        record_decision(run, params, versions, decision, is_champion)
    return {
        "name": name,
        "version": versions.version,
        "text_name": text_name,
        "text_version": versions.text_version,
        "alias": "champion" if is_champion else "challenger",
        "champion": is_champion,
        "gate": decision.as_dict(),
        "comparison": decision.comparison.as_dict(),
        "verdict": evaluation.get("verdict", "unknown"),
        "held_out": held_out_entry(held_out),
        "run_id": run.run_id,
        "run_name": run.run_name,
        "model_uri": f"models:/{name}/{versions.version}",
        "text_model_uri": f"models:/{text_name}/{versions.text_version}",
        "weights_sha256": weights_sha256,
    }


def make_versions(run: TrackedRun, params: Params, tags: dict[str, str], found: "Found") -> Versions:
    """Log both models, check them in a new process, and then create their versions.

    One of the two is there where an earlier try was interrupted between them.
    """
    from gpt2core.model import GPT

    with FreshProcess() as fresh:
        say("exporting the model")
        model = GPT.from_pretrained(paths.BEST_MODEL)
        logged = log_models(model, run.run_id, *map(logged_model_of, found))
        expected = fresh.folder / "expected.npz"
        write_expected(model, expected)
        say("checking it in a new process, without this project and without pickle")
        fresh.ask(logged, expected)
        log_run_artifacts(run)
        answer = fresh.answer()
    say(f"it loads, and its logits differ from the trained model's by at most {answer['largest_difference']:.2g}")
    tags = {**tags, "block_size": str(model.config.block_size)}
    try:
        return Versions(
            *(
                str(entry.version) if entry else create_version(run.client, name, model_id, run.run_id, tags, "")
                for entry, name, model_id in (
                    (found[0], params.register_.name, logged.model_id),
                    (found[1], params.register_.text_name, logged.text_id),
                )
            )
        )
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
        raise UserError(f"MLflow did not register the model: {one_line(error)}") from error


def find_versions(run: TrackedRun, params: Params, weights_sha256: str) -> "Found":
    """The model's version and the text model's that the run has already."""
    return (
        find_version(run.client, params.register_.name, run.run_id, weights_sha256),
        find_version(run.client, params.register_.text_name, run.run_id, weights_sha256),
    )


def version_tags(evaluation: Mapping[str, Any], held_out: HeldOut | None, weights_sha256: str) -> dict[str, str]:
    """The version's score, for later comparisons with it, and the verdict of the evaluation."""
    tags = {"weights_sha256": weights_sha256, "verdict": str(evaluation.get("verdict", "unknown"))}
    if held_out is not None:
        tags |= {
            "data_sha256": held_out.data_sha256,
            "held_out_split": held_out.split,
            "held_out_perplexity": repr(held_out.perplexity),
            "held_out_protocol": held_out.protocol,
        }
    return tags


def held_out_entry(held_out: HeldOut | None) -> dict[str, Any] | None:
    """What registered.json says of the score."""
    if held_out is None:
        return None
    return {key: getattr(held_out, key) for key in ("split", "perplexity", "tokens", "split_tokens")}


def record_decision(
    run: TrackedRun, params: Params, versions: Versions, decision: GateDecision, is_champion: bool
) -> None:
    """Write the decision and the aliases to both versions. Raises UserError if the registry fails."""
    tags = {
        "gate": "passed" if decision.passed else "refused",
        "gate_reasons": " ".join(decision.reasons),
        "memorising": str(decision.memorising).lower(),
    }
    description = f"Gate {tags['gate']}. {tags['gate_reasons']}\n\nRun: {run.run_name} ({run.run_id})."
    pairs = (
        (params.register_.name, versions.version),
        (params.register_.text_name, versions.text_version),
    )
    try:
        for name, version in pairs:
            for key, value in tags.items():
                run.client.set_model_version_tag(name, version, key, value)
            run.client.update_model_version(name, version, description)
            run.client.set_registered_model_alias(name, "challenger", version)
        if is_champion:
            for name, version in pairs:
                make_champion(run.client, name, version)
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
        raise UserError(f"MLflow did not store the gate's decision: {one_line(error)}") from error
    run.set_tags(tags)


def log_run_artifacts(run: TrackedRun) -> None:
    """Log what the earlier stages have not logged, such as plots and samples, and the best checkpoint."""
    run.log_settings()
    if paths.DVC_LOCK.exists():
        run.set_tags({"dvc_lock_sha256": sha256_file(paths.DVC_LOCK)})
    logged = run.artifacts()
    if paths.HISTORY.exists():
        run.log_artifact(paths.HISTORY, "reports")
    run.log_artifacts(paths.TRAIN_METRICS.parent, "reports/metrics")
    if paths.BLOCK_LOSSES.exists():
        run.log_artifact(paths.BLOCK_LOSSES, LOSSES_FOLDER)
    if paths.PLOTS.exists() and "plots" not in logged:
        run.log_artifacts(paths.PLOTS, "plots")
    if FOLDER not in logged:
        log_passages(run)
    if "samples" not in logged:
        log_samples(run)
    if "logs" not in logged and (log := newest_log(paths.LOGS)):
        run.log_artifact(log, "logs")
    run.log_artifacts(paths.BEST_MODEL, BEST_CHECKPOINT)


def newest_log(folder: Path) -> Path | None:
    logs = sorted(folder.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    return logs[-1] if logs else None
