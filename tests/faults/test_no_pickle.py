"""Nothing that is loaded can run code: the source has no way to, and a process without an unpickler loads it."""

import ast
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gpt2core
from gpt2core.config import GPTConfig
from gpt2core.model import GPT
from gpt2ops.registry import text_model

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/v1"
PACKAGES = ("gpt2core", "gpt2ops", "tasks", "flows")
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pty"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load",
    "yaml.load_all", "yaml.load", "torch.hub.load", "torch.serialization.add_safe_globals", "torch.package",
    "torch.serialization.safe_globals", "torch.jit.load", "torch.export.load", "mlflow.pytorch.load_model",
    "mlflow.pyfunc.load_model", "shutil.unpack_archive", "tempfile.mktemp", "np.frompyfunc", "runpy.run_path",
}  # fmt: skip
# Where one of them is right, and why.
ALLOWED = {
    ("gpt2core/importing/torch_file.py", "torch.serialization.safe_globals"): "names become empty classes of our own",
    ("gpt2ops/params/schema.py", "yaml.load"): "with a loader that is a SafeLoader",
    (
        "gpt2ops/registry/champion_score.py",
        "mlflow.pytorch.load_model",
    ): "under MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false",
    ("gpt2ops/registry/fresh_check.py", "mlflow.pytorch.load_model"): "under MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false",
    ("gpt2ops/registry/fresh_check.py", "mlflow.pyfunc.load_model"): "what this run logged a moment ago",
}


def problems(tree: ast.AST) -> Iterator[str]:
    """What in the source could run what a file says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS)
        elif isinstance(node, ast.Call):
            yield from call_problems(node)


def call_problems(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
    if name in FORBIDDEN_CALLS:
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only"
    if name.endswith("extractall") and given.get("filter") != "'data'":
        yield "extractall without a filter"
    for keyword in ("shell", "allow_pickle", "trust_remote_code"):
        if given.get(keyword, "False") != "False" and (keyword != "shell" or name.startswith("subprocess.")):
            yield f"{name}({keyword}=...)"
    if given.get("typ") in ("'unsafe'", "'base'"):
        yield f"{name}(typ=...)"


def test_nothing_in_the_source_runs_what_a_file_says() -> None:
    found = {
        (file.relative_to(ROOT).as_posix(), problem)
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for problem in problems(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert found == set(ALLOWED), "say in ALLOWED why it is right, or take it out"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "YAML(typ='unsafe')",
        "from yaml import unsafe_load",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "eval(text)",
        "tar.extractall(folder)",
        "load_dataset(name, trust_remote_code=True)",
        "mlflow.pyfunc.load_model(uri)",
    ],
)
def test_the_look_at_the_source_would_see(source) -> None:
    assert list(problems(ast.parse(source)))


def test_the_loader_of_params_makes_plain_values_only() -> None:
    import yaml

    from gpt2ops.params.yaml_loader import SettingsLoader

    assert issubclass(SettingsLoader, yaml.SafeLoader)


# The process that follows has no unpickler: whoever takes one ends it. `weights_only` of torch has its own, which makes
# tensors and numbers only.
LOADS = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import pickle, _pickle

class Refused(BaseException):
    pass

def hear(event, arguments):
    if event == "pickle.find_class":
        raise Refused(f"{{event}} {{arguments}}")

sys.addaudithook(hear)

class NoUnpickler:
    def __init__(self, *arguments, **options):
        raise Refused("an unpickler was made")

import torch, mlflow.pytorch, mlflow.pyfunc

def refuse(*arguments, **options):
    raise Refused("something was unpickled")

from pathlib import Path
golden, made = Path({str(GOLDEN)!r}), Path(sys.argv[1])
for module in (pickle, _pickle):
    module.Unpickler, module.load, module.loads = NoUnpickler, refuse, refuse
pickle._Unpickler = NoUnpickler

def must_be_refused(what):
    try:
        what()
    except Refused:
        return
    raise AssertionError("the trap does not work")

must_be_refused(lambda: torch.load(made / "whole.pt", weights_only=False))
must_be_refused(lambda: pickle.loads(b"N."))

from gpt2core import GPT
from gpt2core.training.checkpoint import newest_valid
from gpt2core.importing import import_model
from gpt2core.data.tokens import open_tokens
from gpt2ops.store.client import connect
from gpt2ops.registry.download import registered_model_directory

tokens = open_tokens(golden / "tokens")
tokens.verify()
tokens.split("train").read(0, 3)
GPT.from_pretrained(golden / "model")
checkpoint, damaged = newest_valid(made / "checkpoints")
assert checkpoint is not None and not damaged
import_model(made / "nano.pt")
import_model(made / "directory")
import_model(made / "bin")
client = connect()
client.create_registered_model("gpt2")
version = client.create_model_version("gpt2", (made / "registered").as_uri())
client.set_registered_model_alias("gpt2", "champion", version.version)
mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
ids = torch.tensor([[1, 2, 3]])
logits = mlflow.pytorch.load_model("models:/gpt2@champion")(ids)
assert torch.allclose(logits, GPT.from_pretrained(golden / "model")(ids), atol=1e-4)
text = mlflow.pyfunc.load_model(str(made / "text"))
assert text.predict([{{"prompt": "A"}}], params={{"max_new_tokens": 1}})[0].startswith("A")
print("all loaded")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """One of each that is no golden file: what others saved, and the text model."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = GPT(GPTConfig(50257, 16, n_layer=1, n_head=2, n_embd=8))
    torch.save(model, folder / "whole.pt")
    torch.save({"model": model.state_dict(), "model_args": {"n_head": 2, "block_size": 16}}, folder / "nano.pt")
    model.save_pretrained(folder / "directory")
    model.save_pretrained(folder / "bin")
    from safetensors.torch import load_file

    torch.save(load_file(folder / "bin/model.safetensors"), folder / "bin/pytorch_model.bin")
    (folder / "bin/model.safetensors").unlink()
    for name in ("checkpoints", "registered"):  # copies: who loads them may write beside
        shutil.copytree(GOLDEN / name, folder / name)
    import mlflow.pyfunc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            folder / "text",
            python_model=text_model.__file__,
            artifacts={"model": str(folder / "directory")},
            code_paths=[str(Path(gpt2core.__file__).parent)],
            signature=text_model.signature(),
            pip_requirements=["mlflow"],
        )
    return folder


def test_the_registered_gpt2_brings_no_code_and_no_pickle() -> None:
    import yaml

    folder = GOLDEN / "registered"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"MLmodel", "conda.yaml", "data/model.pt2", "python_env.yaml", "requirements.txt"}
    flavors = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]
    assert {name: flavor["code"] for name, flavor in flavors.items()} == {"pytorch": None}


def test_everything_loads_in_a_process_whose_unpickler_is_broken(made, tmp_path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "GPT2_"))}
    environment |= {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlruns/mlflow.db",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", LOADS, str(made)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all loaded"


class Payload:
    """Unpickling it would leave a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("name", ["model.pt2", "model.pth"])
def test_a_registered_model_with_a_pickle_in_it_is_refused_and_not_run(name, tmp_path, monkeypatch) -> None:
    """Whoever may write into a shared registry must not reach those whose runs are held against its champion."""
    import mlflow.pytorch
    from mlflow.exceptions import MlflowException

    from gpt2ops.store.client import fluent_mlflow

    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    evil = Path(shutil.copytree(GOLDEN / "registered", tmp_path / "evil"))
    (evil / "data/model.pt2").unlink()
    torch.save(Payload(tmp_path / "ran"), evil / "data" / name)
    (evil / "data/pickle_module_info.txt").write_text("pickle")
    with fluent_mlflow(), pytest.raises(MlflowException, match="pickle is disallowed"):
        mlflow.pytorch.load_model(evil.as_uri())
    assert not (tmp_path / "ran").exists()
