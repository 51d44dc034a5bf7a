"""The results of the other stages, as the report reads them."""

from dataclasses import dataclass
from typing import Any

from gpt2ops.params.schema import Params, load_params
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.results import read_report, read_rows


@dataclass(frozen=True)
class Inputs:
    """The parsed result files of a finished run."""

    params: Params
    provenance: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]  # of models/best, in the Hugging Face layout
    record: dict[str, Any]  # models/run.json
    history: list[dict[str, Any]]
    train: dict[str, Any]
    evaluation: dict[str, Any]
    samples: dict[str, Any]
    registered: dict[str, Any]

    @property
    def held_out(self) -> str | None:
        """The split that the verdict uses: test if it has tokens, else val, else None."""
        name = self.evaluation["held_out"]
        return str(name) if name else None

    def score(self, split: str | None, before: bool = False) -> dict[str, Any]:
        """Scores of a split; empty if it was not scored."""
        scores = self.evaluation.get("before") or {} if before else self.evaluation
        return dict(scores.get(split) or {}) if split else {}


def read_inputs() -> Inputs:
    """Raises UserError naming the file that is missing or damaged, and the stage that writes it."""
    config_file = paths.BEST_MODEL / "config.json"
    return Inputs(
        params=load_params(),
        provenance=read_report(paths.PROVENANCE, "download", ("source", "size_bytes", "files")),
        manifest=read_report(paths.TOKENS / "manifest.json", "tokenize", ("splits", "tokenizer", "vocab_size")),
        config=read_report(config_file, "finetune", ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")),
        record=read_report(paths.RUN, "finetune", ("run_id",)),
        history=read_rows(paths.HISTORY, "finetune"),
        train=read_report(paths.TRAIN_METRICS, "finetune", ("steps", "tokens_seen", "stop_reason", "n_params")),
        evaluation=read_report(paths.EVALUATE_METRICS, "evaluate", ("train", "held_out", "verdict", "protocol")),
        samples=read_report(paths.SAMPLES, "sample", ("samples", "settings")),
        registered=read_report(paths.REGISTERED, "register", ("name", "version", "gate", "model_uri")),
    )
