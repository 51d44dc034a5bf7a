"""Facts on a model for its card: training data, settings, metrics and origin."""

import filecmp
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2core.config import GPTConfig
from gpt2core.data.tokens import open_tokens
from gpt2core.errors import UserError
from gpt2core.storage.files import read_json
from gpt2core.storage.hf import RELEASED, WEIGHTS
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.final_metrics import report_metrics
from gpt2ops.pipeline.results import read_report
from gpt2ops.registry.download import split_model_uri
from gpt2ops.tracking.restored_runs import stored_run_id


@dataclass(frozen=True)
class ModelFacts:
    """A field is empty if its value is unknown. `metrics` have MLflow's names, such as `evaluate/test_perplexity`."""

    config: GPTConfig
    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None
    held_out: str | None = None
    data: dict[str, Any] = field(default_factory=dict)  # data/raw/provenance.json
    tokens: dict[str, int] = field(default_factory=dict)  # of each split
    settings: dict[str, str] = field(default_factory=dict)  # of the run: `train.learning_rate` ...
    run_name: str | None = None
    imported: dict[str, Any] = field(default_factory=dict)  # import.json

    @property
    def base_model(self) -> str | None:
        """The Hub's name of the released model that this one was fine-tuned from."""
        return RELEASED.get(self.settings.get("model.init", "")) or RELEASED.get(str(self.imported.get("source")))


def gather_facts(model: str, directory: Path, config: GPTConfig) -> ModelFacts:
    """The facts of the model called `model`, whose weights are in `directory`."""
    if model.startswith("models:/"):
        return _facts_of_version(model, config)
    project = _project_of(directory)
    if project is not None:
        return _facts_of_project(project, config)
    imported = directory / "import.json"
    return ModelFacts(config, Path(model).name, imported=_read_import(imported) if imported.is_file() else {})


def _project_of(directory: Path) -> Path | None:
    """The project that trained the weights in `directory`: its models/best, or a copy of it by `gpt2 finetune`."""
    if paths.RUN.is_file() and directory.resolve() == paths.BEST_MODEL.resolve():
        return Path()
    project = directory / paths.FINETUNED
    made = project / paths.BEST_MODEL / WEIGHTS
    if (project / paths.RUN).is_file() and made.is_file() and (directory / WEIGHTS).is_file():
        return project if filecmp.cmp(made, directory / WEIGHTS, shallow=False) else None
    return None


def _facts_of_project(project: Path, config: GPTConfig) -> ModelFacts:
    """Facts on the project's models/best, from the reports of its run."""
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


def _facts_of_version(uri: str, config: GPTConfig) -> ModelFacts:
    """Facts on a registered model, from its MLflow run; data only if this project still has that run's data."""
    from gpt2ops.registry.models import registered_versions

    name, alias, version = split_model_uri(uri)
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


def _read_import(file: Path) -> dict[str, Any]:
    """import.json, which `gpt2 import` writes. Raises UserError if it is damaged."""
    try:
        return dict(read_json(file))
    except (ValueError, TypeError):
        raise UserError(f"{file} is damaged: import the weights again, or remove it.") from None


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
    """Parameters of an MLflow run; empty if the run or its store cannot be read."""
    from gpt2ops.registry.models import store_exists
    from gpt2ops.store.client import connect

    if not store_exists():
        return {}
    try:
        return dict(connect().get_run(run_id).data.params)
    except Exception:  # for example a run of another store
        return {}
