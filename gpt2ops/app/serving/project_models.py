"""The models of a project: those named at the start, those in its folders, and those in its registry."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpt2core.errors import UserError
from gpt2core.storage.hf import RELEASED, find_weights
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.paths import project_root
from gpt2ops.registry.models import NO_MODELS, ModelVersion, registered_versions, store_exists

REGISTERED = "models:/"
VERSIONS_SHOWN = 20
CACHE_SECONDS = 10.0  # of the choices: each page load needs them


class ProjectModels:
    """`named` models can be anywhere; a path typed by a visitor must be inside the project."""

    def __init__(self, named: Sequence[str] = ()) -> None:
        self._named = list(named)
        self._root = project_root()
        self._lock = threading.Lock()
        self._cached: tuple[float, list[tuple[str, str]]] | None = None

    def choices(self) -> list[tuple[str, str]]:
        """The named ones, models/best, the registered ones, and other folders under models/."""
        with self._lock:
            if self._cached is None or time.monotonic() - self._cached[0] > CACHE_SECONDS:
                self._cached = (time.monotonic(), self._look_up())
            return self._cached[1]

    def directory(self, name: str) -> Path:
        if name.startswith(REGISTERED):
            return self._registered(name)
        if name in self._named and name in RELEASED and not Path(name).is_dir():
            try:
                return find_weights(name)
            except UserError as error:
                raise error.spelled(
                    lambda argument: "--model" if argument == "name_or_directory" else argument
                ) from None
        place = Path(name) if name in self._named else (self._root / name).resolve()
        if name not in self._named and not place.is_relative_to(self._root):
            raise UserError(f"The model {name!r} lies outside this project; its owner can add it with --model.")
        if not place.is_dir():
            offered = " It can be added with --model." if name in RELEASED else ""
            raise UserError(
                f"There is no model {name!r}; choose one from the list, or type a folder of this project such as "
                f"{paths.BEST_MODEL.as_posix()}, or models:/NAME@ALIAS.{offered}"
            )
        return place

    def _look_up(self) -> list[tuple[str, str]]:
        names = [(name, name) for name in self._named]
        if (self._root / paths.BEST_MODEL).is_dir():
            names.append((paths.BEST_MODEL.as_posix(), paths.BEST_MODEL.as_posix()))
        with suppress(UserError):  # without a registry the folders remain
            names += _registered_choices(registered_versions())
        for config in sorted((self._root / paths.BEST_MODEL.parent).glob("*/config.json")):
            folder = config.parent.relative_to(self._root).as_posix()
            names.append((folder, folder))
        first: dict[str, str] = {}
        for label, name in names:
            first.setdefault(name, label)
        return [(label, name) for name, label in first.items()]

    def _registered(self, name: str) -> Path:
        if not store_exists():
            raise UserError(f"There is no model {name!r}: {NO_MODELS}")
        from gpt2ops.registry.download import registered_model_directory

        try:
            return registered_model_directory(name, store="the registry")
        except UserError as error:
            line = str(error.spelled(lambda argument: "The model" if argument == "uri" else argument))
            raise UserError(line.replace(f"{self._root}/", "")) from None  # paths of the project, not of the machine


def _registered_choices(versions: Sequence[ModelVersion]) -> list[tuple[str, str]]:
    """Aliases, then versions, newest first; of the models that one run registered only the first by name."""
    own: dict[str, ModelVersion] = {}
    for version in sorted(versions, key=lambda version: version.name):
        own.setdefault(version.run_id, version)
    kept = [version for version in versions if own[version.run_id] is version][:VERSIONS_SHOWN]
    aliases = [(alias, version) for version in kept for alias in version.aliases]
    aliases.sort(key=lambda pair: pair[0] != "champion")
    return [
        (f"{version.name}@{alias}: version {version.version}{_measured(version)}", f"models:/{version.name}@{alias}")
        for alias, version in aliases
    ] + [(f"{version.name}, version {version.version}{_measured(version)}", version.uri) for version in kept]


def _measured(version: ModelVersion) -> str:
    perplexity = version.metrics.get("evaluate/test_perplexity")
    return "" if perplexity is None else f", perplexity {perplexity:,.0f}"
