"""The champion's perplexity on the candidate's held-out text, measured again if its own score is not comparable.

A champion that may have trained on that text has none: nothing it scores there says how well it generalises.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt2core.errors import UserError
from gpt2ops.pipeline import paths
from gpt2ops.process.console import say
from gpt2ops.registry.gate import Champion, HeldOut, held_out_of
from gpt2ops.registry.gate_score import gate_perplexity
from gpt2ops.registry.trained_text import may_have_trained_on
from gpt2ops.registry.versions import Versions
from gpt2ops.store.errors import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def find_champion(
    client: "MlflowClient", name: str, candidate: Versions, evaluation: Mapping[str, Any]
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
    recorded = recorded_score(entry)
    if recorded is not None and recorded.comparable_to(held_out):
        return Champion(version, recorded.perplexity)
    try:
        if reason := may_have_trained_on(client, entry, held_out):
            return Champion(version, None, reason)
        say(f"the champion (version {version}) was measured on other data or by another protocol; measuring it again")
        return Champion(version, measure(entry, held_out), measured_again=True)
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


def measure(entry: "ModelVersion", held_out: HeldOut) -> float:
    """Perplexity of a registered version on the held-out split."""
    import mlflow.pytorch

    from gpt2core.data.tokens import open_split

    model = mlflow.pytorch.load_model(f"models:/{entry.name}/{entry.version}")
    return gate_perplexity(model, open_split(paths.TOKENS, held_out.split), int(entry.tags["block_size"]))
