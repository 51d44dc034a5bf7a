"""Registered models for `gpt2 models`: versions with their metrics, promotion and rollback of the champion."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpt2core.errors import UserError
from gpt2ops.pipeline.paths import mlruns
from gpt2ops.process.redact import redact
from gpt2ops.registry.champion import ALIAS, champions, make_champion, read_history, registry_lock
from gpt2ops.registry.download import split_model_uri
from gpt2ops.store.address import is_local, tracking_uri
from gpt2ops.store.client import connect
from gpt2ops.store.errors import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion as Entry

NO_MODELS = "no model was registered here yet; train one first (`gpt2 finetune`, or `dvc repro` in a project)."


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model, with the metrics of its run."""

    name: str
    version: str
    aliases: tuple[str, ...]  # champion, challenger, and any others
    run_id: str
    run_name: str
    created: datetime  # in UTC
    metrics: dict[str, float]  # the run's last values, as `evaluate/test_perplexity`
    verdict: str | None  # generalising | memorising | underfitting | unknown
    gate: str | None  # passed | refused
    gate_reasons: str
    weights_sha256: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def store_exists() -> bool:
    """Whether there is a store. Connecting to a missing local store would create it."""
    return not is_local() or (mlruns() / "mlflow.db").is_file()


def registered_versions(name: str | None = None) -> list[ModelVersion]:
    """All versions, or those of the model `name`, newest first.

    Raises UserError if the store cannot be used.
    """
    if not store_exists():
        return []
    client = connect()
    with _readable_errors():
        aliases = {model.name: dict(model.aliases) for model in _pages(client.search_registered_models)}
        entries = [entry for entry in _pages(client.search_model_versions) if name in (None, entry.name)]
        runs = {run_id: _find_run(client, run_id) for run_id in {str(entry.run_id) for entry in entries}}
    found = [_as_version(entry, aliases.get(entry.name, {}), runs[str(entry.run_id)]) for entry in entries]
    return sorted(found, key=lambda version: version.created, reverse=True)


def find_version(uri: str, versions: Iterable[ModelVersion]) -> ModelVersion:
    """The one of `versions` that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names. Raises UserError for none."""
    name, alias, number = split_model_uri(uri)
    for version in versions:
        if version.name == name and (alias in version.aliases or version.version == number):
            return version
    raise UserError(f"{uri} is not in {redact(tracking_uri())}; `gpt2 models list` shows what is.")


def promote(name: str, version: str, force: bool = False) -> list[ModelVersion]:
    """Make a version champion, and its siblings: the same run's versions of other models with the same weights.

    Returns them with their new aliases. Raises UserError if there is no such version, or the gate refused it and
    `force` is not set.
    """
    everything = registered_versions()
    chosen = _choose(everything, name, version)
    if chosen.gate == "refused" and not force:
        raise UserError(f"the gate refused {name} version {version}: {chosen.gate_reasons} --force promotes it anyway.")
    return _set_champion(chosen, everything, rolled_back=False)


def rollback(name: str) -> list[ModelVersion]:
    """Make the previous champion champion again, and its siblings.

    Returns them with their new aliases. Raises UserError if there was no previous champion.
    """
    everything = registered_versions()
    existing = [entry.version for entry in everything if entry.name == name]
    if not existing:
        _choose(everything, name, "")
    with _readable_errors():
        model = connect().get_registered_model(name)
    current = str(model.aliases.get(ALIAS, ""))
    earlier = [v for v in champions(read_history(model.tags)) if v in existing and v != current]
    if not earlier:
        raise UserError(
            f"{name} had no champion before version {current}; choose one with `gpt2 models promote`."
            if current
            else f"{name} has no champion; choose one with `gpt2 models promote`."
        )
    return _set_champion(_choose(everything, name, earlier[-1]), everything, rolled_back=True)


def _choose(everything: list[ModelVersion], name: str, version: str) -> ModelVersion:
    """Raises UserError, with the versions or models that exist, if there is no such version."""
    named = {entry.version: entry for entry in everything if entry.name == name}
    if version in named:
        return named[version]
    if named:
        raise UserError(f"{name} has no version {version}; it has {', '.join(named)}.")
    raise no_such_model(name, everything)


def no_such_model(name: str, everything: list[ModelVersion]) -> UserError:
    names = ", ".join(sorted({entry.name for entry in everything}))
    return UserError(f"no registered model {name!r}; the registered models are {names}." if names else NO_MODELS)


def _set_champion(chosen: ModelVersion, everything: list[ModelVersion], *, rolled_back: bool) -> list[ModelVersion]:
    siblings = [
        entry
        for entry in everything
        if entry.name != chosen.name and (entry.run_id, entry.weights_sha256) == (chosen.run_id, chosen.weights_sha256)
    ]
    # Of several siblings in one model the newest, which is the first in `everything`.
    group = [chosen, *{entry.name: entry for entry in reversed(siblings)}.values()]
    client = connect()
    with registry_lock(), _readable_errors():
        for entry in group:
            make_champion(client, entry.name, entry.version, rolled_back=rolled_back)
    now = registered_versions()
    return [_choose(now, entry.name, entry.version) for entry in group]


def _as_version(entry: "Entry", aliases: dict[str, str], run: "Run | None") -> ModelVersion:
    version = str(entry.version)
    return ModelVersion(
        name=entry.name,
        version=version,
        aliases=tuple(sorted(alias for alias, target in aliases.items() if str(target) == version)),
        run_id=str(entry.run_id or ""),
        run_name=str(run.info.run_name) if run else "",
        created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        metrics=dict(run.data.metrics) if run else {},
        verdict=entry.tags.get("verdict"),
        gate=entry.tags.get("gate"),
        gate_reasons=entry.tags.get("gate_reasons", ""),
        weights_sha256=entry.tags.get("weights_sha256", ""),
    )


def _find_run(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException:  # permanently deleted, or a version without a run
        return None


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All results of a paginated MLflow search."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _readable_errors() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # requests, SQLAlchemy and MLflow each raise their own
        raise UserError(f"the model registry cannot be used: {one_line(error)}") from error
