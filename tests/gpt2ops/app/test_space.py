"""The folder that `gpt2 app --export-space` writes, run as a Hugging Face Space runs it."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import httpx
import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.model import GPT
from gpt2ops.cli.main import main
from tests.support.environments import all_libraries, new_environment
from tests.support.waiting import HANGS, wait_until

OWN = ("gpt2core", "gpt2ops", "tasks", "flows")
# A Space has only what requirements.txt names: what else is installed here must not be asked for.
HIDDEN = "import sys; sys.modules.update(dict.fromkeys(('mlflow', 'dvc', 'prefect', 'transformers')))"


def export(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpt2", "app", "--export-space", *arguments])
    main()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    GPT(GPTConfig(50257, 32, n_layer=1, n_head=2, n_embd=8)).save_pretrained(tmp_path / "models/best")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """A Python that has the libraries installed here, but not this project."""
    python = str(new_environment(tmp_path / "venv", all_libraries(), HIDDEN))
    visible = "import importlib.util, sys; sys.exit(any(map(importlib.util.find_spec, sys.argv[1:])))"
    subprocess.run([python, "-I", "-c", visible, *OWN], check=True)
    return python


@pytest.mark.slow
def test_the_space_runs_by_itself_and_writes_what_generate_writes(
    project: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export(monkeypatch, "space")
    assert capsys.readouterr().out.startswith("space holds the page and models/best.")
    monkeypatch.setattr(
        sys, "argv", ["gpt2", "generate", "--prompt", "Once", "--decoding", "greedy", "--max-new-tokens", "8"]
    )
    main()
    expected = capsys.readouterr().out
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with (project / "log").open("w") as log:
        process = subprocess.Popen(
            [elsewhere, "app.py"], cwd=project / "space", env=environment, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/config"), process)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/gradio_api/call/generate", timeout=HANGS) as client:
            event = client.post("", json={"data": ["Once", "", "greedy", {"max_new_tokens": 8}, None]}).json()
            answer = client.get(f"/{event['event_id']}").text
    finally:
        process.kill()
        process.wait()
    ((record,),) = json.loads(answer.partition("data: ")[2])
    assert f"{record['prompt']}{record['text']}\n" == expected


def answers(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        httpx.get(address, timeout=5)
        return True
    return False


def test_a_space_says_what_it_is_and_pins_what_it_needs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(monkeypatch, "space")
    front = (project / "space/README.md").read_text(encoding="utf-8").split("---")[1]
    requirements = (project / "space/requirements.txt").read_text().splitlines()[1:]
    pins = dict(line.split("==") for line in requirements)
    assert f"sdk: gradio\nsdk_version: {pins['gradio']}\n" in front
    assert "app_file: app.py\nlicense: mit\n" in front
    pinned = (Path(__file__).parents[3] / "requirements.txt").read_text()
    for package, version in pins.items():
        assert re.search(rf"^{package}=={re.escape(version)}\b", pinned, re.MULTILINE), package
    assert {"torch", "gradio", "tiktoken", "safetensors", "pydantic"} <= pins.keys()
    assert not {"mlflow", "dvc", "prefect", "pyarrow"} & pins.keys(), "a page needs no pipeline"
    homes = packages_distributions()
    statement = re.compile(r"^ *(?:from (\w+)[\w.]* import .*|import (\w+)[\w.]*(?: as \w+)?)$", re.MULTILINE)
    for file in (project / "space").rglob("*.py"):
        imported = {first or second for first, second in statement.findall(file.read_text(encoding="utf-8"))}
        for name in imported - {"gpt2core", "gpt2ops", *sys.stdlib_module_names}:
            # Triton comes with PyTorch's CUDA build.
            assert pins.keys() & set(homes.get(name, ["torch"] if name == "triton" else [])), f"{file.name}: {name}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models"], "models exists; name a new folder, or delete it."),
        (["space", "--model", "no/such"], "There is no model 'no/such'"),
        (["space", "--model", "models/best", "--model", "models/best"], "a Space has one model, not 2"),
    ],
)
def test_a_space_that_cannot_be_made_is_one_line_and_leaves_nothing(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        export(monkeypatch, *arguments)
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in project.iterdir()] == ["models"]
