"""What is known of a model beside its weights: what it was trained on, how it was measured, where it came from."""

import filecmp
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2core.config import GPTConfig
from gpt2core.data.tokens import open_tokens
from gpt2core.errors import UserError
from gpt2core.storage.files import read_json
from gpt2core.storage.hf import RELEASED
from gpt2ops import paths
from gpt2ops.pipeline.results import read_report
from gpt2ops.tracking.api import report_metrics
from gpt2ops.tracking.store import stored_run_id

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class ModelFacts:
    """Each is empty where it is not known. `metrics` are named as in MLflow: `evaluate/test_perplexity`."""

    config: GPTConfig
    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None
    held_out: str | None = None
    data: dict[str, Any] = field(default_factory=dict)  # data/raw/provenance.json
    tokens: dict[str, int] = field(default_factory=dict)  # of each split
    settings: dict[str, str] = field(default_factory=dict)  # params of the run, as `train.learning_rate`
    run_name: str | None = None
    imported: dict[str, Any] = field(default_factory=dict)  # import.json

    @property
    def base_model(self) -> str | None:
        """The hub's name of the released model it was fine-tuned from."""
        return RELEASED.get(self.settings.get("model.init", "")) or RELEASED.get(str(self.imported.get("source")))


def gather_facts(model: str, directory: Path, config: GPTConfig) -> ModelFacts:
    """The facts of the model called `model`, whose weights are in `directory`."""
    if model.startswith("models:/"):
        return _of_version(model, config)
    project = _project_of(directory)
    if project is not None:
        return _of_project(project, config)
    imported = directory / "import.json"
    return ModelFacts(config, Path(model).name, imported=_of_import(imported) if imported.is_file() else {})


def _project_of(directory: Path) -> Path | None:
    """The project that made the weights in `directory`, its models/best or what `gpt2 finetune` took from there."""
    if paths.RUN.is_file() and directory.resolve() == paths.BEST_MODEL.resolve():
        return Path()
    project = directory / paths.FINETUNED
    made = project / paths.BEST_MODEL / WEIGHTS
    if (project / paths.RUN).is_file() and made.is_file() and (directory / WEIGHTS).is_file():
        return project if filecmp.cmp(made, directory / WEIGHTS, shallow=False) else None
    return None


def _of_project(project: Path, config: GPTConfig) -> ModelFacts:
    """Of its models/best, from the reports of the run that made it."""
    run = read_report(project / paths.RUN, "finetune", ("run_id",))
    scores = project / paths.EVALUATE_METRICS
    evaluation = read_report(scores, "evaluate", ("verdict", "held_out")) if scores.is_file() else {}
    return ModelFacts(
        config,
        name=str(run.get("run_name") or "gpt2"),
        metrics=report_metrics(project),
        verdict=evaluation.get("verdict"),
        held_out=evaluation.get("held_out"),
        settings=_settings(stored_run_id(str(run["run_id"]))),
        run_name=run.get("run_name"),
        **_data_sheet(project),
    )


def _of_version(uri: str, config: GPTConfig) -> ModelFacts:
    """Of a registered model, from the run that made it; the data sheet only where that run's data is still here."""
    from gpt2ops.registry.models import registered_versions

    name, version, alias = _split_uri(uri)
    found = next(entry for entry in registered_versions(name) if version == entry.version or alias in entry.aliases)
    here = paths.RUN.is_file() and stored_run_id(_run_id(paths.RUN)) == found.run_id
    return ModelFacts(
        config,
        name=found.run_name or name,
        metrics=found.metrics,
        verdict=found.verdict,
        held_out=next((split for split in ("test", "val") if f"evaluate/{split}_loss" in found.metrics), None),
        settings=_settings(found.run_id),
        run_name=found.run_name,
        **(_data_sheet() if here else {}),
    )


def _run_id(record: Path) -> str:
    return str(read_report(record, "finetune", ("run_id",))["run_id"])


def _of_import(file: Path) -> dict[str, Any]:
    """What `gpt2 import` has written beside the weights."""
    try:
        return dict(read_json(file))
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged: import the weights again, or remove it.") from None


def _split_uri(uri: str) -> tuple[str, str | None, str | None]:
    """Name, version and alias of `models:/NAME/VERSION` or `models:/NAME@ALIAS`."""
    name, _, alias = uri.removeprefix("models:/").partition("@")
    name, _, version = name.partition("/")
    return name, version or None, alias or None


def _data_sheet(project: Path = Path()) -> dict[str, Any]:
    provenance, manifest = project / paths.PROVENANCE, project / paths.TOKENS / "manifest.json"
    if not (provenance.is_file() and manifest.is_file()):
        return {}
    tokens = open_tokens(manifest.parent)
    return {
        "data": read_report(provenance, "download", ("source",)),
        "tokens": {name: len(tokens.split(name)) for name in tokens.manifest["splits"]},
    }


def _settings(run_id: str) -> dict[str, str]:
    """Parameters of an MLflow run; none where the run or its store is not here."""
    from gpt2ops.registry.models import store_exists
    from gpt2ops.tracking.store import connect

    if not store_exists():
        return {}
    try:
        return dict(connect().get_run(run_id).data.params)
    except Exception:  # a run of another store: the card then says less
        return {}
