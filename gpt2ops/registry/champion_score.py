"""The champion's losses on the candidate's held-out text, measured again where those of its own run are of another.

A champion that may have trained on that text has none: nothing it scores there says how well it generalises.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2core.errors import UserError
from gpt2core.evaluation.blocks import BlockLosses
from gpt2core.evaluation.scores import Score
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.registry.held_out import Champion, HeldOut, held_out_of
from gpt2ops.registry.scoring.gate_score import gate_score
from gpt2ops.registry.scoring.losses_file import StoredLosses, read_losses
from gpt2ops.registry.trained_text import may_have_trained_on
from gpt2ops.registry.versions import Versions
from gpt2ops.store.errors import one_line
from gpt2ops.store.run_params import final_params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

LOSSES_FOLDER = "reports"  # in a run's artifacts
# Settings that are no part of a recipe: they say with which luck and where it was followed, or look at the result.
_NO_RECIPE = ("run.", "evaluate.", "sample.", "register.")


def find_champion(
    client: "MlflowClient", name: str, candidate: Versions, run_id: str, evaluation: Mapping[str, Any]
) -> Champion | None:
    """None if no version is champion. Raises UserError if the registry cannot be read."""
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
    return replace(_scored(client, entry, held_out), same_recipe=same_recipe(client, run_id, str(entry.run_id)))


def _scored(client: "MlflowClient", entry: "ModelVersion", held_out: HeldOut) -> Champion:
    version, recorded = str(entry.version), recorded_score(entry)
    try:
        if recorded is not None and recorded.comparable_to(held_out):
            losses = recorded_losses(client, str(entry.run_id), held_out)
            if losses is not None:
                return Champion(version, recorded.perplexity, losses=losses)
        elif reason := may_have_trained_on(client, entry, held_out):
            return Champion(version, None, reason)
        say(f"the champion (version {version}) was measured on other data or by another protocol; measuring it again")
        score = measure(entry, held_out)
        return Champion(version, score.perplexity, measured_again=True, losses=score.blocks)
    except Exception as error:  # whatever prevents loading or running it is the reason
        return Champion(
            version,
            None,
            f"it was measured on other data or by another protocol, and measuring it again failed ({one_line(error)})",
        )


def recorded_score(entry: "ModelVersion") -> HeldOut | None:
    """The held-out score in a version's tags, None if it is missing or damaged."""
    try:
        return HeldOut(
            entry.tags["held_out_split"],
            float(entry.tags["held_out_perplexity"]),
            entry.tags["data_sha256"],
            entry.tags["held_out_protocol"],
        )
    except (KeyError, ValueError):
        return None


def recorded_losses(client: "MlflowClient", run_id: str, held_out: HeldOut) -> BlockLosses | None:
    """The losses that its run kept of the text of `held_out`; None where it kept none, or of another text."""
    stored = stored_losses(client, run_id)
    own = held_out_of({"gate": stored.gate}) if stored else None
    return stored.compared if stored and own and own.comparable_to(held_out) else None


def stored_losses(client: "MlflowClient", run_id: str) -> StoredLosses | None:
    """The losses by block among a run's artifacts. Raises what the store raises, and UserError for a damaged file."""
    file = f"{LOSSES_FOLDER}/{paths.BLOCK_LOSSES.name}"
    if file not in {item.path for item in client.list_artifacts(run_id, LOSSES_FOLDER)}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return read_losses(Path(client.download_artifacts(run_id, file, folder)))


def measure(entry: "ModelVersion", held_out: HeldOut) -> Score:
    """The score of a registered version on the text of `held_out`."""
    import mlflow.pytorch

    from gpt2core.data.tokens import open_split

    model = mlflow.pytorch.load_model(f"models:/{entry.name}/{entry.version}")
    text = open_split(paths.TOKENS, held_out.split)
    return gate_score(model, text, int(entry.tags["block_size"]), held_out.first_tokens)


def same_recipe(client: "MlflowClient", first: str, second: str) -> bool:
    """Whether two runs differ in their seed at most: the same data, code, and settings of data, model and train."""
    from mlflow.exceptions import MlflowException

    try:
        runs = [client.get_run(run_id) for run_id in (first, second)]
    except MlflowException:  # permanently deleted
        return False
    facts = [(_recipe(run), *(run.data.tags.get(key) for key in ("data_sha256", "code_sha256"))) for run in runs]
    return bool(facts[0][0]) and facts[0] == facts[1]


def _recipe(run: "Run") -> dict[str, str]:
    return {key: value for key, value in final_params(run).items() if not key.startswith(_NO_RECIPE)}
