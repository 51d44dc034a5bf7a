"""Stage `register`: models/best + metrics -> model versions, aliases, reports/registered.json."""

if __name__ == "__main__":
    from gpt2ops.process.startup import start_process

    start_process()

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core.errors import UserError
from gpt2core.storage.files import sha256_file, write_json
from gpt2ops import paths
from gpt2ops.params.schema import Params, load_params
from gpt2ops.pipeline.results import read_report
from gpt2ops.process.console import say
from gpt2ops.process.stage import run_stage
from gpt2ops.registry.champion import make_champion, registry_lock
from gpt2ops.registry.gate import Champion, HeldOut, Verdict, held_out_of, judge
from gpt2ops.registry.versions import (
    FreshProcess,
    Versions,
    create_version,
    find_version,
    log_models,
    write_expected,
)
from gpt2ops.sampling.page import log_samples
from gpt2ops.tracking.api import BEST_CHECKPOINT, TrackedRun, tracked_run
from gpt2ops.tracking.store import fluent_mlflow, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def main() -> None:
    params = load_params()
    evaluation = read_report(paths.EVALUATE_METRICS, "evaluate", ("held_out", "verdict", "protocol", "data_sha256"))
    train = read_report(paths.TRAIN_METRICS, "finetune", ("target_reached",))
    weights = paths.BEST_MODEL / "model.safetensors"
    if not weights.exists():
        raise UserError(f"{weights} is missing: run the stage finetune first (`dvc repro finetune`).")
    with tracked_run(wait=False) as run, fluent_mlflow():
        registered = register(params, run, evaluation, train, sha256_file(weights))
        write_json(paths.REGISTERED, registered)
        run.log_artifact(paths.REGISTERED, "reports")


def register(
    params: Params, run: TrackedRun, evaluation: Mapping[str, Any], train: Mapping[str, Any], weights_sha256: str
) -> dict[str, Any]:
    """Versions of models/best in the registry, with the gate's verdict; what registered.json says."""
    name, text_name = params.register_.name, params.register_.text_name
    held_out = held_out_of(evaluation)
    tags = version_tags(evaluation, held_out, weights_sha256)
    versions = find_versions(run, params, weights_sha256)
    if versions is None:
        versions = make_versions(run, params, tags)
    else:
        say(f"{name} version {versions.version} has these weights already; holding it against the gate again")
        log_run_artifacts(run)
    with registry_lock():
        champion = find_champion(run.client, name, versions, evaluation)
        verdict = judge(evaluation, train, champion, params.register_.gate)
        is_champion = verdict.passed or (champion is not None and champion.same_version)
        announce(run, params, versions, verdict, is_champion)
    return {
        "name": name,
        "version": versions.version,
        "text_name": text_name,
        "text_version": versions.text_version,
        "alias": "champion" if is_champion else "challenger",
        "champion": is_champion,
        "gate": verdict.as_dict(),
        "verdict": evaluation.get("verdict", "unknown"),
        "held_out": {"split": held_out.split, "perplexity": held_out.perplexity} if held_out else None,
        "run_id": run.run_id,
        "run_name": run.run_name,
        "model_uri": f"models:/{name}/{versions.version}",
        "text_model_uri": f"models:/{text_name}/{versions.text_version}",
        "weights_sha256": weights_sha256,
    }


def make_versions(run: TrackedRun, params: Params, tags: dict[str, str]) -> Versions:
    """Log both models, check them in a fresh process, and only then make them versions."""
    from gpt2core.model import GPT

    with FreshProcess() as fresh:
        say("exporting the model")
        model = GPT.from_pretrained(paths.BEST_MODEL)
        logged = log_models(model, run.run_id)
        expected = fresh.folder / "expected.npz"
        write_expected(model, expected)
        say("loading it in a fresh process, without this project and without pickle")
        fresh.ask(logged, expected)
        log_run_artifacts(run)
        found = fresh.answer()
    say(f"it loads, and its logits differ from the trained model's by {found['largest_difference']:.2g} at most")
    tags = {**tags, "block_size": str(model.config.block_size)}
    try:
        return Versions(
            *(
                create_version(run.client, name, model_id, run.run_id, tags, "")
                for name, model_id in (
                    (params.register_.name, logged.model_id),
                    (params.register_.text_name, logged.text_id),
                )
            )
        )
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
        raise UserError(f"MLflow did not register the model: {one_line(error)}") from error


def find_versions(run: TrackedRun, params: Params, weights_sha256: str) -> Versions | None:
    found = [
        find_version(run.client, name, run.run_id, weights_sha256)
        for name in (params.register_.name, params.register_.text_name)
    ]
    version, text_version = found
    return Versions(version, text_version) if version and text_version else None


def version_tags(evaluation: Mapping[str, Any], held_out: HeldOut | None, weights_sha256: str) -> dict[str, str]:
    """What a later gate needs to compare with this version, and a reader to judge it."""
    tags = {"weights_sha256": weights_sha256, "verdict": str(evaluation.get("verdict", "unknown"))}
    if held_out is not None:
        tags |= {
            "data_sha256": held_out.data_sha256,
            "held_out_split": held_out.split,
            "held_out_perplexity": repr(held_out.perplexity),
            "held_out_protocol": held_out.protocol,
        }
    return tags


def find_champion(
    client: "MlflowClient", name: str, candidate: Versions, evaluation: Mapping[str, Any]
) -> Champion | None:
    """The champion with its perplexity on the candidate's held-out data, measured again where it has none."""
    from mlflow.exceptions import MlflowException

    try:
        entry = client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise UserError(f"cannot read the champion of {name}: {one_line(error)}") from None
    version = str(entry.version)
    if version == candidate.version:
        return Champion(version, None, same_version=True)
    held_out = held_out_of(evaluation)
    if held_out is None:
        return Champion(version, None)
    known = known_score(entry)
    if known is not None and known.comparable_to(held_out):
        return Champion(version, known.perplexity)
    say(f"the champion (version {version}) was measured on other data or in another way; measuring it on this data")
    try:
        return Champion(version, measure(entry, held_out, evaluation), measured_again=True)
    except Exception as error:  # whatever keeps it from loading or running is the reason
        return Champion(
            version, None, f"it was measured on other data or in another way, and now it fails ({one_line(error)})"
        )


def known_score(entry: "ModelVersion") -> HeldOut | None:
    """What a version's tags say of its held-out score."""
    try:
        return HeldOut(
            entry.tags["held_out_split"],
            float(entry.tags["held_out_perplexity"]),
            entry.tags["data_sha256"],
            entry.tags["held_out_protocol"],
        )
    except (KeyError, ValueError):
        return None


def measure(entry: "ModelVersion", held_out: HeldOut, evaluation: Mapping[str, Any]) -> float:
    """Perplexity of a registered version on this held-out split; its own block_size where that is smaller."""
    import mlflow.pytorch

    from gpt2core.data.tokens import open_split
    from gpt2core.evaluation.scores import evaluate

    model = mlflow.pytorch.load_model(f"models:/{entry.name}/{entry.version}")
    protocol = evaluation["protocol"]
    block_size = min(protocol["block_size"], int(entry.tags.get("block_size", protocol["block_size"])))
    score = evaluate(
        model,
        open_split(paths.TOKENS, held_out.split),
        block_size=block_size,
        stride=min(protocol["stride"], block_size),
        max_tokens=protocol.get("max_tokens"),
    )
    assert score is not None, "a split with a held-out perplexity has tokens"
    return score.perplexity


def announce(run: TrackedRun, params: Params, versions: Versions, verdict: Verdict, is_champion: bool) -> None:
    """Verdict and aliases onto both versions. Raises UserError where the registry fails."""
    tags = {
        "gate": "passed" if verdict.passed else "refused",
        "gate_reasons": " ".join(verdict.reasons),
        "memorising": str(verdict.memorising).lower(),
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
        raise UserError(f"MLflow did not take the verdict: {one_line(error)}") from error
    run.set_tags(tags)


def log_run_artifacts(run: TrackedRun) -> None:
    """What the run's page should hold beside the models, where the stages before have not put it there already."""
    run.log_settings()
    if paths.DVC_LOCK.exists():
        run.set_tags({"dvc_lock_sha256": sha256_file(paths.DVC_LOCK)})
    there = run.artifacts()
    if paths.HISTORY.exists():
        run.log_artifact(paths.HISTORY, "reports")
    run.log_artifacts(paths.TRAIN_METRICS.parent, "reports/metrics")
    if paths.PLOTS.exists() and "plots" not in there:
        run.log_artifacts(paths.PLOTS, "plots")
    if "samples" not in there:
        log_samples(run)
    if "logs" not in there and (log := newest_log(paths.LOGS)):
        run.log_artifact(log, "logs")
    run.log_artifacts(paths.BEST_MODEL, BEST_CHECKPOINT)


def newest_log(folder: Path) -> Path | None:
    logs = sorted(folder.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    return logs[-1] if logs else None


if __name__ == "__main__":
    run_stage("register", main)
