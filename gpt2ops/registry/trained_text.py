"""Whether a champion may have trained on the candidate's held-out text, by the passage hashes kept with its version."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2core.data.tokens import open_tokens
from gpt2ops.pipeline import paths
from gpt2ops.registry.held_out import HeldOut
from gpt2ops.registry.scoring.passages import (
    FILE,
    FirstTokens,
    read_passages,
    seen_share,
    train_passages,
    write_passages,
)
from gpt2ops.tracking.api import TrackedRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "gate"  # in a run's artifacts
# Texts of one kind share a few passages, such as a licence; so small a part cannot decide a comparison.
MOST_SEEN = 0.01


def log_passages(run: TrackedRun) -> None:
    """Keep the hashes of the training text with the run, which gpt2 gc keeps as long as a version came from it."""
    with tempfile.TemporaryDirectory() as folder:
        run.log_artifact(write_passages(train_passages(open_tokens(paths.TOKENS).split("train")), Path(folder)), FOLDER)


def may_have_trained_on(client: "MlflowClient", entry: "ModelVersion", held_out: HeldOut) -> str | None:
    """Why the version `entry` may have trained on the held-out text in data/tokens; None where it has not.

    Raises what the store raises, and UserError for damaged hashes.
    """
    if entry.tags.get("data_sha256") == held_out.data_sha256:
        return None  # the same splits
    run_id = str(entry.run_id)
    if f"{FOLDER}/{FILE}" not in {item.path for item in client.list_artifacts(run_id, FOLDER)}:
        return (
            "it may have trained on this held-out text, for no hashes of the text that it was trained on were kept "
            "(its run is of an earlier version)"
        )
    with tempfile.TemporaryDirectory() as folder:
        theirs = read_passages(Path(client.download_artifacts(run_id, f"{FOLDER}/{FILE}", folder)))
    tokens = open_tokens(paths.TOKENS)
    text = FirstTokens(tokens.split(held_out.split), held_out.first_tokens)
    share = seen_share(text, theirs, train_passages(tokens.split("train")))
    if share is None:
        return "it may have trained on this held-out text, which is too short to tell"
    if share > MOST_SEEN:
        return f"it may have trained on this held-out text ({share:.0%} of its passages are in its training text)"
    return None
