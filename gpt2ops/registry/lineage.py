"""Where a registered version came from, and what was made from it: by the hash of the weights that a run started at."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2core.storage.hf import RELEASED
from gpt2ops.pipeline.run_origin import INITIAL_WEIGHTS_TAG
from gpt2ops.process.redact import redact
from gpt2ops.registry.models import ModelVersion, find_version, registered_versions
from gpt2ops.registry.runs import Run, list_runs

Node = dict[str, Any]


@dataclass(frozen=True)
class _Store:
    """All versions and runs, found by what links them."""

    by_weights: dict[str, list[ModelVersion]]
    by_run: dict[str, list[ModelVersion]]
    by_start: dict[str, list[Run]]
    runs: dict[str, Run]


def lineage(uri: str) -> Node:
    """The version `models:/NAME@ALIAS` or `models:/NAME/VERSION` with its ancestors and all that was made from it.

    Keys: `version`, `same_weights`, `run` (with `data`, `code` and `settings`), `starts_from` (with `lineage`, where it
    is a registered version), and `made_from_it`. Raises UserError where there is no such version.
    """
    versions = registered_versions()
    chosen = find_version(uri if uri.startswith("models:/") else f"models:/{uri}", versions)
    store = _store(versions, list_runs())
    return {
        **_with_ancestors(chosen, store, frozenset()),
        "made_from_it": _descendants(chosen.weights_sha256, store, frozenset()),
    }


def _store(versions: Sequence[ModelVersion], runs: Sequence[Run]) -> _Store:
    by_weights, by_run = defaultdict(list), defaultdict(list)
    by_start: dict[str, list[Run]] = defaultdict(list)
    for version in reversed(versions):  # oldest first
        by_run[version.run_id].append(version)
        if version.weights_sha256:
            by_weights[version.weights_sha256].append(version)
    for run in reversed(runs):
        if start := run.tags.get(INITIAL_WEIGHTS_TAG):
            by_start[start].append(run)
    return _Store(dict(by_weights), dict(by_run), dict(by_start), {run.run_id: run for run in runs})


def _with_ancestors(version: ModelVersion, store: _Store, seen: frozenset[str]) -> Node:
    run = store.runs.get(version.run_id)
    others = [other for other in store.by_run[version.run_id] if other is not version]
    return {
        "version": _version(version),
        "same_weights": [_version(other) for other in others if other.weights_sha256 == version.weights_sha256],
        "run": _run(run) if run else None,
        "starts_from": _start(run, store, seen | {version.weights_sha256}) if run else None,
    }


def _start(run: Run, store: _Store, seen: frozenset[str]) -> Node:
    """What the run's first step started at. `seen` ends the walk where a run left its weights as they were."""
    init, sha256 = run.params.get("model.init", "scratch"), run.tags.get(INITIAL_WEIGHTS_TAG)
    if init == "scratch":
        return {
            "kind": "new weights",
            "name": f"{run.params.get('model.preset')}, by seed {run.params.get('run.seed')}",
        }
    if sha256 and sha256 not in seen and (parents := store.by_weights.get(sha256)):
        return {"kind": "version", "name": init, "lineage": _with_ancestors(parents[0], store, seen)}
    return {"kind": "released weights" if init in RELEASED else "weights", "name": redact(init), "sha256": sha256}


def _descendants(sha256: str, store: _Store, seen: frozenset[str]) -> list[Node]:
    """The runs that started at these weights, each with its versions, and so on."""
    if not sha256 or sha256 in seen:
        return []
    found = []
    for run in store.by_start.get(sha256, []):
        versions = store.by_run.get(run.run_id, [])
        weights = dict.fromkeys(version.weights_sha256 for version in versions)
        below = [node for later in weights for node in _descendants(later, store, seen | {sha256})]
        found.append({"run": _run(run), "versions": [_version(version) for version in versions], "made_from_it": below})
    return found


def _version(version: ModelVersion) -> Node:
    return {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "created": version.created.isoformat(),
        "gate": version.gate,
        "verdict": version.verdict,
        "test_perplexity": version.metrics.get("evaluate/test_perplexity"),
        "weights_sha256": version.weights_sha256,
    }


def _run(run: Run) -> Node:
    return {
        "run_id": run.run_id,
        "name": run.name,
        "state": run.state,
        "started": run.started.isoformat(),
        "data": {"source": redact(run.params.get("data.source", "")), "sha256": run.tags.get("data_sha256")},
        "code": {
            "version": run.tags.get("code_version"),
            "git_commit": run.tags.get("git_commit"),
            "git_dirty": run.tags.get("git_dirty"),
        },
        "settings": {
            "recipe": run.params.get("train.recipe"),
            "seed": run.params.get("run.seed"),
            "steps": run.metrics.get("steps"),
            "val_loss": run.metrics.get("best_val_loss"),
        },
        **{key: run.tags[key] for key in ("rerun_of", "cached_from", "median_of_seeds") if key in run.tags},
    }
