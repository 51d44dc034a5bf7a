"""What a module imports, and that dvc.yaml names what decides each stage's result."""

import ast
from pathlib import Path

import pytest
import yaml

from gpt2ops.pipeline.closure import import_closure

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("gpt2core", "gpt2ops", "tasks")
# Code that a stage imports and that cannot change what it writes; what only this code imports is not looked at either.
NEUTRAL = {
    "tasks": "only a docstring",
    "gpt2ops.process.stage": "locks, signals and failure lines around a stage",
    "gpt2ops.process.signals": "signals, and the start of processes",
    "gpt2ops.process.startup": "start of the process: allocator, garbage collector, Ctrl-C",
    "gpt2ops.process.failures": "words of a failure",
    "gpt2ops.process.temporary": "where temporary files lie",
    "gpt2core.errors": "words of a failure",
    "gpt2core.extras": "words of a failure",
    "gpt2ops.params.problems": "words of a failure",
    "gpt2ops.training.memory": "whether a run can start",
    "gpt2ops.process.console": "the console",
    "gpt2ops.training.log": "the console and the log",
    "gpt2ops.training.watch": "warnings and live status",
    "gpt2ops.training.fingerprint": "which checkpoints belong to a run",
    "gpt2ops.tracking.api": "the MLflow client",
    "gpt2ops.store*": "the MLflow client",
    "gpt2ops.registry.download": "the MLflow client",
    "gpt2ops.pipeline.final_metrics": "what MLflow is told of a report",
    "gpt2ops.pipeline.code_version": "which code ran, not what it did",
    "gpt2ops.pipeline.run_origin": "tags of the MLflow run",
    "gpt2ops.pipeline.paths": "names of files, which dvc.yaml holds too: a test compares them",
    "gpt2core.kernels.cores": "how many threads, so how fast",
    "gpt2core": "hands on names of its modules",
}
# What every stage imports by the schema, to check settings with, and what training prints samples with.
DECIDES_ONLY = {
    "gpt2core.decoding*": {"evaluate", "sample", "register"},
    "gpt2core.tokenizer": {"tokenize", "finetune", "evaluate", "sample", "register"},
    "gpt2core.training.config": {"finetune"},
    "gpt2ops.training.references": {"report"},
    "gpt2ops.training.initial_model": {"finetune", "evaluate", "sample"},  # register: whether it can start
    "gpt2core.config": {"finetune", "evaluate", "sample", "register"},
}
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def code_of(stage: str) -> set[Path]:
    """What decides the stage's result, relative to the project."""
    without = [*NEUTRAL, *(module for module, stages in DECIDES_ONLY.items() if stage not in stages)]
    command = STAGES[stage]["cmd"].split()
    assert command[:2] == ["python", "-m"]
    files = import_closure([command[2]], PACKAGES, without).files.values()
    return {file.relative_to(ROOT) for file in files if len(ast.parse(file.read_text(encoding="utf-8")).body) > 1}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_all_code_that_decides_a_stages_result_and_no_other(stage: str) -> None:
    deps = [Path(dep) for dep in STAGES[stage]["deps"] if Path(dep).parts[0] in PACKAGES]
    code = code_of(stage)
    missing = sorted(str(file) for file in code if not {file, *file.parents} & set(deps))
    python = [dep for dep in deps if dep.suffix in ("", ".py")]  # templates are read, not imported
    unused = [str(dep) for dep in python if not any(dep in (file, *file.parents) for file in code)]
    assert not missing, f"add to the deps of {stage} (or to NEUTRAL, with the reason): {missing}"
    assert not unused, f"{stage} imports no more: {unused}"


def test_every_exception_is_still_imported() -> None:
    everything = import_closure([stage["cmd"].split()[2] for stage in STAGES.values()], PACKAGES).files
    assert {name.removesuffix("*") for name in (*NEUTRAL, *DECIDES_ONLY)} <= everything.keys()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of all kinds of imports, none of which can run."""
    sources = {
        "__init__": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from closed_over.lazy import Thing",
        "start": "import os, numpy.linalg\nfrom . import first\nraise RuntimeError",
        "first": "def later():\n    from closed_over.sub.deep import name\n    from closed_over import Thing",
        "lazy": "TABLE = {'x': 'closed_over.named:function'}",
        "named": "import typing\nif typing.TYPE_CHECKING:\n    from . import typed\nelse:\n    from . import untyped",
        "untyped": '"""closed_over.prose is not imported."""',
        "sub/__init__": "",
        "sub/deep": "from ..around import first",
        **dict.fromkeys(("typed", "prose", "alone"), ""),
        "around": "import closed_over.behind",
        "behind": "",
    }
    for name, source in sources.items():
        file = tmp_path / f"closed_over/{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "closed_over"


def test_a_closure_has_deferred_lazy_and_named_modules_and_leaves_typing(package: Path) -> None:
    closure = import_closure(["closed_over.start"], ["closed_over"])
    found = {file.relative_to(package).with_suffix("").as_posix() for file in closure.files.values()}
    untouched = {"typed", "prose", "alone"}
    assert found == {file.relative_to(package).with_suffix("").as_posix() for file in package.rglob("*.py")} - untouched
    assert closure.libraries == {"numpy"}


def test_what_is_reached_only_through_an_exception_is_left_out(package: Path) -> None:
    whole, cut = (import_closure(["closed_over.start"], ["closed_over"], without) for without in ([], ["*.around"]))
    assert whole.files.keys() - cut.files.keys() == {"closed_over.around", "closed_over.behind"}
