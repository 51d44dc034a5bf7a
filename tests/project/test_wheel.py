"""The wheel: what it puts into site-packages, a project that it runs, and the library without anything optional."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from gpt2ops.params.schema import load_params
from gpt2ops.pipeline.code_version import code_sha256
from tests.support.environments import (
    all_libraries,
    build_wheel,
    clean_environment,
    install,
    link_libraries,
    new_environment,
    site_packages,
)  # fmt: skip
from tests.support.small_project import ROOT, TINY, merge

CORE = ("torch", "numpy", "safetensors", "tiktoken")
# Modules of a user, in the project, that end whatever imports them; random is also one of the standard library.
HOSTILE = ("tasks.py", "app.py", "cli.py", "flows/__init__.py", "random.py", "gpt2core.py")
LIBRARY_ALONE = """
from pathlib import Path
import numpy as np, torch
from gpt2core import GPT, GPTConfig, Tokenizer, Trainer, TrainerConfig, UserError, evaluate, generate, perplexity
from gpt2core.data.batches import Batches
from gpt2core.data.corpus import read_corpus
from gpt2core.data.tokens import open_split
from gpt2core.data.writer import write_tokens
from gpt2core.runtime import pick_runtime, set_threads

assert set_threads(None) >= 1
text = "The first day was cold, and nobody went out until evening came.\\n" * 100
write_tokens("tokens", [text], source="text", shares={"train": 0.8, "val": 0.1, "test": 0.1}, split_by="tokens")
train, val = open_split("tokens", "train"), open_split("tokens", "val")
torch.manual_seed(0)
model = GPT(GPTConfig(50257, 16, n_layer=1, n_head=2, n_embd=16))
before = evaluate(model, val, block_size=16, stride=8)
config = TrainerConfig(
    optimizer="adamw", learning_rate=0.03, min_learning_rate=0.003, muon_learning_rate=0.02, beta1=0.9, beta2=0.99,
    schedule="cosine", warmup_steps=2, decay_fraction=0.2, weight_decay=0.1, max_grad_norm=1.0, micro_batch_size=None,
    gradient_checkpointing=False, compile="off", cuda_graph="off", log_interval=5, eval_interval=10, eval_batches=2,
    checkpoint_interval=10, keep_last=1, target_loss=None, metric="train_ema", patience=None, max_steps=20,
    max_epochs=None, best_by="val_loss", sample_prompt=(1,), sample_tokens=2, sample_interval="evaluation", seed=1,
)
batches = Batches(train, batch_size=4, sequence_length=16, sampler="shuffled", seed=1)
run = pick_runtime("cpu", "fp32")
Trainer(model, batches, val, config, run=run, checkpoints=Path("checkpoints"), fingerprint={}).fit()
assert evaluate(model, val, block_size=16, stride=8).loss < before.loss
assert perplexity(model, val, block_size=16) > 1
model.save_pretrained("model")
tokenizer = Tokenizer()
ids = torch.tensor([tokenizer.encode("The first")])
texts = [generate(each, ids, max_new_tokens=5) for each in (model.eval(), GPT.from_pretrained("model"))]
assert torch.equal(*texts) and tokenizer.decode(texts[0][0].tolist()).startswith("The first")
Path("text.txt.zst").write_bytes(b"x")
Path("text.parquet").write_bytes(b"x")
for needed, call in {
    "zstandard": lambda: list(read_corpus([Path("text.txt.zst")])),
    "pyarrow": lambda: list(read_corpus([Path("text.parquet")])),
    "huggingface_hub": lambda: GPT.from_pretrained("gpt2"),
}.items():
    try:
        call()
    except UserError as error:
        assert needed in str(error) and "gpt2-workflow[pipeline]" in str(error), error
    else:
        raise AssertionError(needed)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and all libraries."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    python = new_environment(folder, all_libraries())
    install(wheel, python)
    return python


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_it_puts_two_packages_into_site_packages_and_one_program_beside_python(installed: Path) -> None:
    folder = site_packages(installed.parents[1])
    packages = {name for name in names_in(folder) if not name.endswith((".dist-info", ".pth"))}
    assert packages == {"gpt2core", "gpt2ops"}
    assert {name for name in names_in(installed.parent) if not name.lower().startswith(("python", "activate"))} == {
        "gpt2"
    }
    assert names_in(folder.parents[2]) <= {"bin", "include", "lib", "lib64", "pyvenv.cfg"}


def test_its_files_are_those_of_the_repository(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    published = {"params.yaml", "dvc.yaml", "data/corpus/shakespeare-plays.txt"}
    expected = {f"gpt2ops/published/{name}" for name in published}
    expected |= {f"gpt2ops/stages/{file.name}" for file in (ROOT / "tasks").glob("*.py")}
    for package in ("gpt2core", "gpt2ops"):
        files = (file for file in (ROOT / package).rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        expected |= {file.relative_to(ROOT).as_posix() for file in files}
    assert names == expected


def test_a_project_runs_beside_the_users_own_modules(installed: Path, tmp_path: Path) -> None:
    environment = clean_environment()
    environment["PATH"] = f"{installed.parent}{os.pathsep}{environment['PATH']}"

    def run(*command: str, folder: Path = tmp_path) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "my.txt").write_text((ROOT / "data/corpus/shakespeare-plays.txt").read_text()[:20_000])
    run("gpt2", "init", "novel", "--train-file", "my.txt")
    project = tmp_path / "novel"
    settings = load_params(project / "params.yaml").model_dump(by_alias=True)
    source = settings["data"]["source"]
    merge(settings, TINY)
    merge(settings, {"data": {"source": source}, "run": {"nproc_per_node": 2}, "train": {"stop": {"max_steps": 8}}})
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    for name in HOSTILE:
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(f"raise SystemExit('the user\\'s own {name} was imported')\n")
    run("python", "-P", "-m", "dvc", "repro", folder=project)
    assert (project / "reports/registered.json").is_file()
    assert (project / "reports/report.html").is_file()
    assert "Running stage" not in run("python", "-P", "-m", "dvc", "repro", folder=project)
    run("gpt2", "init", ".", "--update", folder=project)
    assert "up to date" in run("python", "-P", "-m", "dvc", "status", folder=project)
    code = "from gpt2ops.pipeline.code_version import code_sha256; print(code_sha256())"
    assert run("python", "-c", code).strip() == code_sha256(), "the same code has the same digest here and there"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_the_library_trains_and_writes_with_its_own_requirements_alone(wheel: Path, tmp_path: Path) -> None:
    link_libraries(CORE, tmp_path / "core")
    python = new_environment(tmp_path / "venv", [tmp_path / "core"])
    install(wheel, python)
    absent = "import sys; from importlib.util import find_spec; sys.exit(any(map(find_spec, sys.argv[1:])))"
    hidden = ("psutil", "gigatoken", "huggingface_hub", "pyarrow", "zstandard", "mlflow", "yaml", "pydantic", "dvc")
    subprocess.run([python, "-c", absent, *hidden], cwd=tmp_path, check=True, env=clean_environment())
    done = subprocess.run(
        [python, "-c", LIBRARY_ALONE], cwd=tmp_path, env=clean_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    program = [python.parent / "gpt2", "generate", "--model", "model", "--prompt", "The"]
    failed = subprocess.run(program, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True)
    assert failed.returncode == 1
    assert "is not installed: pip install 'gpt2-workflow[pipeline]'" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
