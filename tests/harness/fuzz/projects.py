"""What stages leave for each other and for later commands: reports, spools, records, and a whole project to verify."""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt2core.data.corpus import read_corpus
from gpt2core.data.writer import write_tokens
from gpt2core.model import GPT
from gpt2core.storage.files import sha256_file, write_json
from gpt2core.training.checkpoint import save_checkpoint
from gpt2ops.maintenance import presence
from gpt2ops.maintenance.doctor.processes import locks
from gpt2ops.maintenance.garbage import files as garbage_files
from gpt2ops.maintenance.verify import verify_path, verify_project
from gpt2ops.pipeline import cache as outputs
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.results import read_report, read_rows
from gpt2ops.publishing.model_facts import gather_facts
from gpt2ops.registry.scoring.gate_score import protocol
from gpt2ops.reporting.summary import summary_lines
from gpt2ops.tracking.journal import Journal
from gpt2ops.tracking.restored_runs import restored_runs
from gpt2ops.training.fingerprint import unfinished_run
from gpt2ops.training.status import STATUS, read_status
from tasks.tokenize import read_provenance
from tests.harness.fuzz.harness import Fault, wrong_with
from tests.harness.fuzz.models import SMALL, spoil_folder
from tests.harness.fuzz.mutate import as_json, changed, odd_text, odd_value, spoiled

RUN_ID = "3711ed90f44549169b6b31d13b4a8728"
SCORES = {"loss": 4.48, "perplexity": 88.5, "bits_per_byte": 1.95, "token_accuracy": 0.26, "tokens": 24999}
VALID: dict[Path, Any] = {
    paths.PROVENANCE: {
        "format_version": 1,
        "source": "bundled",
        "licence": "public domain",
        "urls": [],
        "size_bytes": 20,
        "files": [{"file": "a.txt", "size_bytes": 20, "sha256": "0" * 64}],
    },
    paths.RUN: {
        "run_id": RUN_ID,
        "experiment": "gpt2",
        "tracking_uri": "sqlite:///mlruns/mlflow.db",
        "run_name": "small",
    },
    paths.HISTORY: [{"step": step, "train_loss": 9.0, "val_loss": None, "learning_rate": 3e-4} for step in (1, 2)],
    paths.TRAIN_METRICS: {
        "steps": 683,
        "tokens_seen": 349696,
        "epochs": 1.3,
        "train_loss": 4.39,
        "train_loss_full": None,
        "target_loss": 4.4,
        "target_reached": True,
        "stop_reason": "target_loss",
        "n_params": 7242624,
        "wall_seconds": 92.1,
    },
    paths.EVALUATE_METRICS: {
        "train": SCORES,
        "val": SCORES,
        "test": SCORES,
        "before": {"test": SCORES},
        "held_out": "test",
        "verbatim_recall": 0.0,
        "verdict": "generalising",
        "protocol": {"block_size": 128, "stride": 64, "max_tokens": 25000},
        "gate": {"split": "test", "perplexity": 328.1, "data_sha256": "3a" * 32, "protocol": protocol(25_000)},
        "data_sha256": "3a" * 32,
    },
    paths.REGISTERED: {
        "name": "gpt2",
        "version": "1",
        "text_name": "gpt2-text",
        "text_version": "1",
        "alias": "champion",
        "champion": True,
        "gate": {"passed": True, "memorising": False, "reasons": ["There was no champion yet."]},
        "verdict": "generalising",
        "held_out": {"split": "test", "perplexity": 328.1},
        "run_id": RUN_ID,
        "model_uri": "models:/gpt2/1",
        "weights_sha256": "a3" * 32,
    },
    STATUS: {
        "step": 1,
        "total_steps": 9,
        "loss": 3.5,
        "tokens_per_second": None,
        "seconds_left": 9.0,
        "run_id": RUN_ID,
        "experiment_id": "1",
        "warnings": 0,
    },
    Path("mlruns/restored_runs.json"): {RUN_ID: "ab" * 16},
    Path(".dvc/tmp/rwlock"): {
        "read": {"a": [{"pid": 2**22 + 1, "cmd": "dvc repro"}]},
        "write": {"b": {"pid": 1, "cmd": "x"}},
    },
    paths.DVC_LOCK: {
        "schema": "2.0",
        "stages": {
            "plot": {
                "cmd": "python",
                "outs": [{"path": "reports/plots", "hash": "md5", "md5": "0" * 32 + ".dir", "nfiles": 1}],
            }
        },
    },
    paths.CHECKPOINTS / "ab/step-00000004/trainer.json": {
        "step": 4,
        "fingerprint": {"seed": 1},
        "finished": None,
        "extra": {"run_id": "x"},
    },
    Path("spool.jsonl"): ["train_loss", 3.5, 1790000000000, 7],
    Path("spool/messages.json"): [{"do": "status", "what": "its end", "status": "KILLED", "end_time": 1}],
}


def _spool() -> Any:
    journal = Journal(Path("spool"))
    journal.add({"x": 1.0}, step=3)
    journal.resolve({})
    return journal.waiting()


READERS: dict[Path, tuple[Callable[[], Any], ...]] = {
    paths.PROVENANCE: (lambda: list(read_corpus([paths.RAW / entry["file"] for entry in read_provenance()["files"]])),),
    paths.RUN: (
        lambda: read_report(paths.RUN, "finetune", ("run_id",)),
        lambda: _facts(),
        lambda: garbage_files.run_of_best(Path()),
    ),
    paths.HISTORY: (lambda: read_rows(paths.HISTORY, "finetune"),),
    paths.TRAIN_METRICS: (summary_lines,),
    paths.EVALUATE_METRICS: (summary_lines, lambda: _facts()),
    paths.REGISTERED: (summary_lines, lambda: presence.workspaces(Path())),
    STATUS: (lambda: _said(read_status(STATUS)),),
    Path("mlruns/restored_runs.json"): (restored_runs,),
    Path(".dvc/tmp/rwlock"): (lambda: list(locks(Path())),),
    paths.DVC_LOCK: (lambda: list(verify_project(Path())), lambda: outputs.restore_outputs("plot")),
    paths.CHECKPOINTS / "ab/step-00000004/trainer.json": (
        lambda: unfinished_run(Path("none"), {"seed": 2}),
        lambda: garbage_files.newest_state(paths.CHECKPOINTS / "ab"),
    ),
    Path("spool.jsonl"): (_spool,),
    Path("spool/messages.json"): (_spool,),
}


def _said(status: Any) -> Any:
    return status and status.sentence()


def _facts() -> Any:
    return gather_facts(str(paths.BEST_MODEL), paths.BEST_MODEL, SMALL)


def prepare_reports(folder: Path) -> dict[str, Any]:
    root = folder / "project"
    for path, value in VALID.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(json.dumps(value) + "\n")
    (root / paths.RAW / "a.txt").write_text("To be, or not to be.")
    (root / paths.BEST_MODEL).mkdir()
    (root / "reports/plots").mkdir()
    (root / "params.yaml").write_text("sample: {prompts: [ROMEO.]}\n")
    outputs.cache_directory = lambda project=Path(): project / ".dvc/cache"
    return {"root": root, "contents": [json.dumps(value).encode() for value in VALID.values()]}


def reports(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """One file of a finished project, damaged, and everything that reads it."""
    shutil.copytree(state["root"], folder, dirs_exist_ok=True)
    path = rng.choice(list(VALID))
    content = path.read_bytes()
    if rng.random() < 0.35:
        content = spoiled(rng, content * rng.choice((1, 1, 3)), state["contents"])
    else:
        value = changed(rng, VALID[path]) if rng.random() < 0.9 else odd_value(rng)
        content = as_json(rng, value)
    path.unlink()
    if rng.random() < 0.03:
        path.mkdir()
    elif rng.random() < 0.98:
        path.write_bytes(content)
    rng.choice(READERS[path])()


# gpt2 verify


def prepare_verify(folder: Path) -> dict[str, Any]:
    root = folder / "project"
    fragments = [piece for number in range(30) for piece in (f"Text {number} of many words.", "<|endoftext|>")]
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    write_tokens(root / paths.TOKENS, fragments, source="test", shares=shares, shard_tokens=60)
    torch.manual_seed(0)
    model = GPT(SMALL)
    for step in (4, 8):
        state = {"step": step, "fingerprint": {}, "finished": None, "extra": {}}
        save_checkpoint(root / paths.CHECKPOINTS / f"ab/step-{step:08d}", model, {"moment": torch.zeros(3)}, state)
    model.save_pretrained(root / paths.BEST_MODEL)
    write_json(root / paths.RUN, VALID[paths.RUN])
    weights = sha256_file(root / paths.BEST_MODEL / "model.safetensors")
    write_json(root / paths.REGISTERED, {**VALID[paths.REGISTERED], "weights_sha256": weights})
    return {"root": root}


def verify(state: dict[str, Any], rng: random.Random, folder: Path) -> None:
    """A project with damage in one of its folders: it is named, each in one line, and nothing else is."""
    shutil.copytree(state["root"], folder, dirs_exist_ok=True)
    (folder / "outside").write_bytes(b"secret")
    places = (paths.TOKENS, paths.CHECKPOINTS / "ab/step-00000008", paths.BEST_MODEL)
    target = rng.choice(places)
    before = _contents(target)
    spoil_folder(rng, target)
    if rng.random() < 0.1:
        (
            paths.CHECKPOINTS
            / "ab"
            / f"step-{odd_text(rng, 2).replace(os.sep, '').encode('utf-8', 'replace').decode()}".replace("\0", "")
        ).mkdir(exist_ok=True)
    after = _contents(target)
    results = list(verify_project(Path()))
    with contextlib.suppress(OSError):
        results += verify_path(target, Path())
    for result in results:
        for line in result.damage:
            if problem := wrong_with(line):
                raise Fault(problem)
    named = " ".join(line for result in results for line in result.damage)
    if target == places[1]:  # the first damaged file of a checkpoint is enough
        if not named and any(before[name] != after.get(name) for name in before if name != "manifest.json"):
            raise Fault("a changed checkpoint passes")
        return
    hashed = [
        name
        for name in before
        if name != "manifest.json" and (target != paths.BEST_MODEL or name == "model.safetensors")
    ]
    for name in hashed:
        if before[name] != after.get(name) and name not in named and "manifest.json" not in named:
            raise Fault(f"{name} was changed, and verify names {named or 'nothing'}")


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and not file.is_symlink()}
