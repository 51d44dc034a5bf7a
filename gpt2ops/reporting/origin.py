"""The report's sections on data, settings, use of the model, and provenance."""

import json
import shlex
from typing import Any

from gpt2ops.params.keys import flatten
from gpt2ops.params.schema import Params
from gpt2ops.process.redact import redact
from gpt2ops.reporting.blocks import (
    Block,
    Cell,
    Code,
    Facts,
    Paragraph,
    Row,
    Section,
    Table,
    count_text,
    duration_text,
    share_text,
    shortened,
    size_text,
)
from gpt2ops.reporting.inputs import Inputs
from gpt2ops.reporting.results import SPLIT_NAMES
from gpt2ops.reporting.runs import Comparison
from gpt2ops.store.address import is_local, tracking_uri

MAX_FILES = 10
MAX_VALUE = 600  # characters of a setting
SHORT_PROMPT = 60


def data(inputs: Inputs) -> Section:
    provenance, manifest = inputs.provenance, inputs.manifest
    files, splits = provenance["files"], manifest["splits"]
    tokens = sum(split["tokens"] for split in splits.values())
    documents = sum(split["documents"] for split in splits.values())
    rows = [
        ("Source", str(provenance["source"])),
        ("Licence", provenance.get("licence") or "unknown: set data.licence in params.yaml"),
        ("Size", f"{provenance['size_bytes']:,} bytes ({size_text(provenance['size_bytes'])})"),
        ("Tokens", f"{tokens:,}, tokenizer {manifest['tokenizer']} (vocabulary of {manifest['vocab_size']:,})"),
        ("Documents", count_text(documents)),
        (
            "Split by",
            f"{manifest.get('split_by', 'unknown')}: {manifest.get('split_reason') or 'as data.split_by says'}",
        ),
    ]
    rows[1:1] = [("URL", url) for url in provenance.get("urls", [])]
    if manifest.get("max_tokens"):
        rows.append(("Truncated to", f"the first {manifest['max_tokens']:,} tokens (data.max_tokens)"))
    shown = [
        Row([Cell(entry["file"]), Cell(f"{entry['size_bytes']:,}"), Cell(entry["sha256"])])
        for entry in files[:MAX_FILES]
    ]
    more = f"{len(files) - MAX_FILES:,} more files are in data/raw/provenance.json." if len(files) > MAX_FILES else ""
    parts = [
        Row(
            [
                Cell(SPLIT_NAMES.get(name, name)),
                Cell(count_text(split["tokens"])),
                Cell(share_text(split["tokens"] / tokens if tokens else None, 1)),
                Cell(count_text(split["documents"])),
                Cell(split["sha256"]),
            ]
        )
        for name, split in splits.items()
    ]
    return Section(
        "data",
        "Data",
        [
            Facts(rows),
            Table("Splits", ["Split", "Tokens", "Share", "Documents", "sha256 of the tokens"], parts, (1, 2, 3)),
            Table("Files", ["File", "Bytes", "sha256"], shown, (1,), more),
        ],
    )


def settings(inputs: Inputs) -> Section:
    """The main settings, and a table of those that differ from the schema's defaults."""
    changed = changed_settings(inputs.params)
    blocks: list[Block] = [Facts(main_settings(inputs))]
    if changed:
        rows = [Row([Cell(key, meaning), Cell(here), Cell(default)]) for key, here, default, meaning in changed]
        blocks.append(Table("Settings that differ from the defaults", ["Setting", "This run", "Default"], rows))
    else:
        blocks.append(Paragraph("Every setting has its default value."))
    return Section("settings", "Settings", blocks)


def main_settings(inputs: Inputs) -> list[tuple[str, str]]:
    params, config, train = inputs.params, inputs.config, inputs.params.train
    start = (
        f"new weights, preset {params.model.preset}"
        if params.model.init == "scratch"
        else f"weights of {params.model.init}"
    )
    rate = f"{train.optimizer}, learning rate {train.learning_rate:g}"
    if train.optimizer == "muon":
        rate += f" ({train.muon_learning_rate:g} for the matrices)"
    warmup = f", warm-up {train.warmup_steps:,} steps" if train.warmup_steps is not None else ""
    stop = train.stop
    ends = [
        f"{stop.metric} at or under {stop.target_loss:g}" if stop.target_loss is not None else "",
        f"{stop.patience} evaluations without a new best" if stop.patience else "",
        f"{stop.max_steps:,} steps" if stop.max_steps else "",
        f"{stop.max_epochs:g} epochs" if stop.max_epochs else "",
    ]
    tokens = train.batch_size * train.sequence_length
    precision = inputs.train.get("precision", params.run.precision)
    return [
        ("Start", start),
        (
            "Model",
            f"{inputs.train['n_params']:,} parameters: {config['n_layer']} layers, {config['n_head']} heads, "
            f"width {config['n_embd']:,}, context of {config['n_positions']:,} tokens",
        ),
        ("Optimizer", f"{rate}, schedule {train.schedule}{warmup}, weight decay {train.weight_decay:g}"),
        (
            "Batch",
            f"{train.batch_size:,} sequences of {train.sequence_length:,} tokens ({tokens:,} tokens per step), "
            f"{train.sampler}",
        ),
        ("Stops at", ", or ".join(end for end in ends if end)),
        ("Precision and seed", f"{precision}, seed {params.run.seed}"),
    ]


def changed_settings(params: Params) -> list[tuple[str, str, str, str]]:
    """Key, value, default and description of each setting that differs from the schema's default."""
    here, defaults = (flatten(each.model_dump(mode="json", by_alias=True)) for each in (params, Params()))
    meanings = _meanings(Params)
    return [
        (key, _written(value), _written(defaults.get(key)), meanings.get(key, ""))
        for key, value in here.items()
        if value != defaults.get(key)
    ]


def _meanings(section: Any, prefix: str = "") -> dict[str, str]:
    found = {}
    for name, entry in section.model_fields.items():
        key = prefix + (entry.alias or name)
        if hasattr(entry.annotation, "model_fields"):
            found.update(_meanings(entry.annotation, f"{key}."))
        else:
            found[key] = entry.description or ""
    return found


def _written(value: Any) -> str:
    """The value as in params.yaml."""
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return shortened(text, MAX_VALUE)


def use(inputs: Inputs) -> Section:
    """Commands for this model, to be run in the project's folder."""
    registered = inputs.registered
    uri, text_uri = registered["model_uri"], registered.get("text_model_uri")
    store = "sqlite:///mlruns/mlflow.db" if is_local() else redact(tracking_uri())
    prompt = next((one for one in inputs.params.sample.prompts if _is_short(one)), "Once upon a time")
    blocks: list[Block] = [
        Paragraph("Run these in the project's folder, with its environment activated (source .venv/bin/activate)."),
        Code("Generate text", f"gpt2 generate --model {uri} --prompt {shlex.quote(prompt)}"),
        Code("Generate text on a web page", f"gpt2 app --model {uri}"),
        Code(
            "In Python, without this project's code",
            "import mlflow, torch\n\n"
            f'mlflow.set_tracking_uri("{store}")\n'
            f'model = mlflow.pytorch.load_model("{uri}")\n'
            "logits = model(torch.tensor([[464, 2159, 318]]))  # (1, 3, vocabulary)",
        ),
    ]
    if text_uri:
        body = json.dumps({"inputs": [prompt], "params": {"max_new_tokens": 40, "seed": 1}})
        blocks.append(
            Code(
                "Serve it over HTTP",
                f"export MLFLOW_TRACKING_URI={store}\n"
                f"mlflow models serve -m {text_uri} --env-manager local -p 5001\n"
                "curl 127.0.0.1:5001/invocations -H 'content-type: application/json' -d "
                f"{shlex.quote(body)}   # from another shell",
            )
        )
    blocks.append(Code("Continue training from this model (params.yaml)", f"model:\n  init: {uri}"))
    folder = f"export/{registered['name']}-{registered['version']}"
    blocks.append(
        Code("Export for transformers and other programs", f"gpt2 export --model {uri} --output-dir {folder}")
    )
    return Section("use", "Use this model", blocks)


def _is_short(prompt: str) -> bool:
    return 0 < len(prompt) <= SHORT_PROMPT and prompt.isprintable()


def origin(inputs: Inputs, comparison: Comparison) -> Section:
    """Machine, software, code, and the ids and hashes of the run."""
    facts, tags, registered = inputs.record.get("environment", {}), comparison.tags, inputs.registered
    dirty = {"true": ", with uncommitted changes", "false": ", no uncommitted changes"}
    commit = tags.get("git_commit", "unknown")
    started = comparison.this.started_at if comparison.this else None
    run_id = comparison.this.run_id if comparison.this else inputs.record["run_id"]
    rows = [
        ("MLflow run", f"{inputs.record.get('run_name', '')} ({run_id})"),
        ("Experiment", f"{inputs.record.get('experiment', inputs.params.run.experiment)}, in {_store(inputs)}"),
        ("Started", f"{started:%Y-%m-%d %H:%M} UTC" if started else "unknown"),
        ("Training time", duration_text(inputs.train.get("wall_seconds"))),
        ("Device", _device(inputs)),
        ("Processor", f"{facts['cpu']}, {facts['cpus']} CPUs, {facts['threads']} threads used" if facts else ""),
        ("Software", f"Python {facts['python']}, PyTorch {facts['torch']}, {facts['system']}" if facts else ""),
        ("Git commit", commit + (dirty.get(tags.get("git_dirty", ""), "") if commit != "unknown" else "")),
        ("sha256 of dvc.lock", tags.get("dvc_lock_sha256", "unknown")),
        ("sha256 of the data", inputs.evaluation.get("data_sha256") or "unknown"),
        ("sha256 of the weights", registered.get("weights_sha256", "unknown")),
        ("Prefect flow run", tags.get("prefect_flow_run_id", "")),
        ("Restored from run", tags.get("cached_from", "")),
    ]
    again = Code("Reproduce this run and compare", f"gpt2 rerun {run_id}")
    return Section("origin", "Provenance", [Facts([(name, value) for name, value in rows if value]), again])


def _store(inputs: Inputs) -> str:
    return str(inputs.record.get("tracking_uri") or "an unknown store")


def _device(inputs: Inputs) -> str:
    facts, train = inputs.record.get("environment", {}), inputs.train
    speed = train.get("tokens_per_second")
    text = f"{facts.get('device', train.get('device', 'unknown'))}, {train.get('precision', 'unknown precision')}"
    return text + (f", {speed:,.0f} tokens per second" if speed else "")
