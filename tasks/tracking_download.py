"""The best weights of a run, out of the store's artifacts: tried again, and held against the hash in the registry."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2core.errors import UserError
from gpt2core.files import sha256_file
from tasks.stage import say
from tasks.tracking_store import is_local, mlruns, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

BEST_CHECKPOINT = "checkpoints/best"  # in a run's artifacts
WEIGHTS = "model.safetensors"
ATTEMPTS, FIRST_PAUSE_SECONDS = 4, 1.0


def checkpoint_directory(
    client: "MlflowClient", run_id: str, sha256: str | None, where: str, pause_seconds: float = FIRST_PAUSE_SECONDS
) -> Path:
    """The run's best checkpoint, whose weights are of `sha256`; one that was fetched before is not fetched again.

    Raises UserError that begins with `where` for one that is not there or is another.
    """
    target = None if is_local() else mlruns() / "downloads" / run_id  # a local store gives the place itself
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        fetched = target / BEST_CHECKPOINT
        if sha256 and (fetched / WEIGHTS).is_file() and sha256_file(fetched / WEIGHTS) == sha256:
            return fetched
    attempts = 1 if target is None else ATTEMPTS
    for attempt in range(attempts):
        try:
            directory = Path(client.download_artifacts(run_id, BEST_CHECKPOINT, str(target) if target else None))
        except Exception as error:  # each artifact store raises its own
            problem = f"its run {run_id} has no checkpoint: {one_line(error)}"
        else:
            if not (directory / WEIGHTS).exists():
                raise UserError(f"{where}: its run {run_id} has no {BEST_CHECKPOINT}/{WEIGHTS}.")
            found = sha256_file(directory / WEIGHTS) if sha256 else None
            if found == sha256:
                return directory
            problem = f"{directory / WEIGHTS} is damaged: its sha256 is {found}, registered was {sha256}."
        if attempt + 1 < attempts:
            pause = pause_seconds * 2**attempt
            say(f"{where}: {problem}; trying again in {pause:g} s")
            time.sleep(pause)
    raise UserError(f"{where}: {problem}")
