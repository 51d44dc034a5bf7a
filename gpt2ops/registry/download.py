"""Download of a run's best weights from the store's artifacts: retried, resumed, and checked by their hash."""

import posixpath
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2core.errors import UserError
from gpt2core.storage.files import sha256_file
from gpt2core.storage.hf import WEIGHTS
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.process.console import say
from gpt2ops.process.redact import redact
from gpt2ops.store.address import is_local, tracking_uri
from gpt2ops.store.client import connect
from gpt2ops.store.errors import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

BEST_CHECKPOINT = "checkpoints/best"  # in a run's artifacts
BLOCK_BYTES = 1 << 20
ATTEMPTS, FIRST_PAUSE_SECONDS = 4, 1.0
_RUN_ID = re.compile(r"[A-Za-z0-9][\w-]{0,255}")  # as MLflow's own check has it


def registered_model_directory(uri: str, store: str | None = None) -> Path:
    """The Hugging Face layout of a registered model: the best checkpoint of the run that registered it.

    `store` is what an error calls the registry, which is otherwise named by its address. Raises UserError, with the key
    `uri`, where the model or the checkpoint is missing.
    """
    name, alias, version = split_model_uri(uri)
    client = connect()
    from mlflow.exceptions import MlflowException

    try:
        entry = (
            client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, str(version))
        )
    except MlflowException as error:
        place, rule = store or redact(tracking_uri()), "is not in {place}: {reason}"
        raise UserError(key="uri", value=uri, rule=rule, place=place, reason=one_line(error)) from None
    return checkpoint_directory(client, str(entry.run_id), entry.tags.get("weights_sha256"), uri)


def split_model_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Name, alias and version of `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises UserError, with the key `uri`, for anything else.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise UserError(key="uri", value=uri, rule="must be models:/NAME@ALIAS or models:/NAME/VERSION")
    return match[1], match[2], match[3]


def checkpoint_directory(
    client: "MlflowClient", run_id: str, sha256: str | None, uri: str, pause_seconds: float = FIRST_PAUSE_SECONDS
) -> Path:
    """The run's best checkpoint, whose weights have this `sha256`; an earlier download of it is used again.

    Raises UserError, with the key `uri`, where it is missing or has another hash.
    """
    if not _RUN_ID.fullmatch(run_id):  # it becomes a folder's name
        raise UserError(
            key="uri", value=uri, rule=": the store names {run} as its run, which is no id", run=repr(run_id)
        )
    target = None if is_local() else mlruns() / "downloads" / run_id  # a local store gives the place itself
    if target is not None:
        target.mkdir(parents=True, exist_ok=True)
        fetched = target / BEST_CHECKPOINT
        if sha256 and (fetched / WEIGHTS).is_file() and sha256_file(fetched / WEIGHTS) == sha256:
            return fetched
    attempts = 1 if target is None else ATTEMPTS
    for attempt in range(attempts):
        try:
            directory = _fetch(client, run_id, target)
        except Exception as error:  # each artifact store raises its own
            problem = f"its run {run_id} has no checkpoint: {one_line(error)}"
        else:
            if not (directory / WEIGHTS).exists():
                raise UserError(key="uri", value=uri, rule=f": its run {run_id} has no {BEST_CHECKPOINT}/{WEIGHTS}")
            found = sha256_file(directory / WEIGHTS) if sha256 else None
            if found == sha256:
                return directory
            problem = f"{directory / WEIGHTS} is damaged: its sha256 is {found}, registered was {sha256}."
            if target is not None:
                (directory / WEIGHTS).unlink()  # anew, for a part of it may be of an earlier try
        if attempt + 1 < attempts:
            pause = pause_seconds * 2**attempt
            say(f"{uri}: {problem}; trying again in {pause:g} s")
            time.sleep(pause)
    raise UserError(key="uri", value=uri, rule=": {problem}", problem=problem)


def _fetch(client: "MlflowClient", run_id: str, target: Path | None) -> Path:
    """The folder of the checkpoint. From a server's own artifacts an interrupted download of the weights is resumed."""
    if target is None or not tracking_uri().startswith("http"):
        return Path(client.download_artifacts(run_id, BEST_CHECKPOINT, str(target) if target else None))
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    repository = get_artifact_repository(client.get_run(run_id).info.artifact_uri, tracking_uri=tracking_uri())
    if not isinstance(repository, HttpArtifactRepository):  # a cloud's: its library tries the parts again
        return Path(client.download_artifacts(run_id, BEST_CHECKPOINT, str(target)))
    directory = target / BEST_CHECKPOINT
    directory.mkdir(parents=True, exist_ok=True)
    weights = f"{BEST_CHECKPOINT}/{WEIGHTS}"
    for item in client.list_artifacts(run_id, BEST_CHECKPOINT):
        if item.path != weights:
            repository.download_artifacts(item.path, str(target))
        elif not (directory / WEIGHTS).exists():
            partial = directory / f".{WEIGHTS}.partial"
            _continue(repository, weights, partial)
            partial.replace(directory / WEIGHTS)
    return directory


def _continue(repository: "HttpArtifactRepository", path: str, file: Path) -> None:
    """Append the rest of `path` on the server to `file`. Raises what requests and MLflow raise."""
    from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

    done = file.stat().st_size if file.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    endpoint = posixpath.join("/", path)
    with http_request(repository._host_creds, endpoint, "GET", stream=True, extra_headers=headers) as response:
        if response.status_code == 416:  # it was whole, or is not that file
            whole = response.headers.get("Content-Range", "").rpartition("/")[2] == str(done)
            if not whole:
                file.unlink()
                raise ConnectionError(f"the part of {path} that is here does not fit the one there")
            return
        augmented_raise_for_status(response)
        continues = response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        with file.open("ab" if response.status_code == 206 and continues else "wb") as handle:
            for block in response.iter_content(BLOCK_BYTES):
                handle.write(block)
