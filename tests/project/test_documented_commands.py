"""Each command of the README and of pages of docs/ runs as it stands there.

Every line of a `bash` block and every `python` block is run, in the page's order, in a folder that has what a reader
has: a clone with a small model's settings, a text, and a Hugging Face cache with tiny models under the released names.
What cannot run in a test is in NOT_RUN, with where else it is run.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2core.tokenizer import Tokenizer
from gpt2ops.cli.main import COMMANDS, build_parser
from gpt2ops.params.schema import Params
from tests.support import foreign_models
from tests.support.documented import ROOT, Reader, blocks_of
from tests.support.foreign_models import BookGPT, HandMadeGPT, NanoGPT, spread
from tests.support.small_project import TINY, Project, copy_sources, merge
from tests.support.tensorflow_checkpoint import as_tensorflow, write_checkpoint

PAGES = (
    "README.md",
    "docs/start.md",
    "docs/own_text.md",
    "docs/examples.md",
    "docs/decoding.md",
    "docs/serving.md",
    "docs/scale.md",
    "docs/COMING_FROM.md",
    "docs/reference/api.md",
)
NOT_RUN = {
    "make run": "sets up .venv and trains the default model; CI runs it (.ci/run) and checks what it left",
    "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make run": "the same, with a download of PyTorch",
    "make test": "CI runs `make test-all` in a fresh clone, and this after it",
    "make serve": "tests/flows/test_flow_server.py starts the same module",
    "python3 -m venv .venv": "CI's `make test-all` does it",
    "source .venv/bin/activate": "the environment of this test is active",
    "cd novel && dvc repro": (
        "trains the default model; tests/gpt2ops/cli/test_cli_finetune.py runs all stages of such a project"
    ),
    "cd story && dvc repro": "as `cd novel && dvc repro`",
    "pip install -r requirements.txt": "CI's `make test-all` does it",
    "pip install --no-deps -e .": "CI's `make test-all` does it",
    "pip install -r requirements-dev.txt": "CI's `make test-all` does it",
    'python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not pages"': "CI runs more than it",
    "prefect deployment run 'fine-tune/local' -p 'train={\"learning_rate\": 1e-3}' --watch": (
        "needs `make serve`; tests/flows/test_flow_server.py submits runs the same way"
    ),
    "python -m flows.fine_tune --set train.learning_rate=1e-3": (
        "tests/flows/test_overrides.py, tests/tasks/test_pipeline.py"
    ),
}
TEXT = "The first day was cold, and nobody went out until evening came.\n" * 200  # no word twice: a bigram tells all
RELEASED = ("gpt2", "gpt2-medium")

pytestmark = [pytest.mark.slow, pytest.mark.pages]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face cache, as the hub's client leaves it."""
    folder = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32))
    learn(model)
    for name in RELEASED:
        repository = folder / "hub" / f"models--openai-community--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        model.save_pretrained(repository / "snapshots" / ("0" * 40))
    return folder


def learn(model: GPT2LMHeadModel) -> None:
    """Teach it TEXT's cycle of tokens, wherever they stand, so that a target loss is soon reached."""
    ids = torch.tensor(Tokenizer().encode(TEXT)[:33]).view(1, -1)
    model.eval()  # no dropout
    torch.nn.init.zeros_(model.transformer.wpe.weight).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "GPT2_", "DVC_", "PREFECT_", "HF_"))}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "DVC_NO_ANALYTICS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else seven processes more a server
    }


@pytest.fixture(scope="module")
def clone(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """For the README: a clone whose settings make a run of seconds, in which one has ended."""
    root = tmp_path_factory.mktemp("clone") / "project"
    root.mkdir()
    copy_sources(root)
    settings: dict[str, Any] = json.loads(json.dumps(TINY))
    short = {"eval_interval": 6, "stop": {"max_steps": 6}}
    merge(settings, {"model": {"block_size": 128}, "train": short, "sample": {"max_new_tokens": 4}})
    project = Project(root, settings)
    project.environment |= environment(home)
    project.git("init", "-q")
    project.dvc("repro")
    project.git("add", "-A")
    project.git("commit", "-qm", "a run")
    prepare(root)
    torch.save(spread(NanoGPT()).checkpoint(), root / "ckpt.pt")
    reader = Reader(root, project.environment)
    yield reader
    reader.close()


def prepare(folder: Path) -> None:
    """The files that the pages speak of."""
    (folder / "my.txt").write_text(TEXT)
    (folder / "stories.txt").write_text(TEXT)
    lines = [{"prompt": "To be", "id": 1}, {"prompt": "Or not", "seed": 3, "temperature": 0.5}]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def folder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """For those who come from elsewhere: the installed command, a text, and what other programs left."""
    root = tmp_path_factory.mktemp("elsewhere")
    prepare(root)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"BLOCK": 256, "WIDTH": 128, "HEADS": 2}.items():  # heads as wide as GPT-2's
            patch.setattr(foreign_models, name, size)
        (root / "out").mkdir()
        torch.save(spread(NanoGPT()).checkpoint(), root / "out/ckpt.pt")
        torch.save(spread(HandMadeGPT()).state_dict(), root / "gpt2_finetuned_best_loss_0.0941.pt")
        (root / "checkpoint/run1").mkdir(parents=True)
        write_checkpoint(as_tensorflow(spread(NanoGPT())), root / "checkpoint/run1")
        torch.save({"model_state_dict": spread(BookGPT()).state_dict()}, root / "gpt2_best_model.pt")
    reader = Reader(root, environment(home))
    yield reader
    reader.close()


def assert_can_be_followed(page: str, reader: Reader, subtests: pytest.Subtests) -> None:
    for block in blocks_of((ROOT / page).read_text(encoding="utf-8")):
        if block.language == "python":
            with subtests.test(f"{page}:{block.line}"):
                reader.run_python(block.text)
        for command in block.commands if block.language == "bash" else []:
            if command not in NOT_RUN:
                with subtests.test(f"{page}:{block.line}: {command}"):
                    reader.run(command)


def test_the_readme_can_be_followed(clone: Reader, subtests: pytest.Subtests) -> None:
    assert_can_be_followed("README.md", clone, subtests)


def test_the_page_on_decoding_can_be_followed(clone: Reader, subtests: pytest.Subtests) -> None:
    assert_can_be_followed("docs/decoding.md", clone, subtests)


def test_the_page_on_serving_can_be_followed(clone: Reader, subtests: pytest.Subtests) -> None:
    assert_can_be_followed("docs/serving.md", clone, subtests)


@pytest.mark.parametrize("page", ["docs/start.md", "docs/own_text.md", "docs/scale.md", "docs/reference/api.md"])
def test_a_page_for_newcomers_can_be_followed(page: str, clone: Reader, subtests: pytest.Subtests) -> None:
    assert_can_be_followed(page, clone, subtests)


def test_who_comes_from_elsewhere_can_follow(folder: Reader, subtests: pytest.Subtests) -> None:
    assert_can_be_followed("docs/COMING_FROM.md", folder, subtests)


def test_what_is_not_run_is_on_a_page_and_has_a_reason() -> None:
    written = {
        command
        for page in PAGES
        for block in blocks_of((ROOT / page).read_text(encoding="utf-8"))
        if block.language == "bash"
        for command in block.commands
    }
    assert NOT_RUN.keys() <= written
    for reason in NOT_RUN.values():
        for test in re.findall(r"tests/\w+\.py", reason):
            assert (ROOT / test).exists(), test


def test_a_block_is_bash_python_or_shows_something() -> None:
    for page in PAGES:
        for block in blocks_of((ROOT / page).read_text(encoding="utf-8")):
            assert block.language in ("bash", "python", "yaml", "json", "text"), f"{page}:{block.line}"


def spans(page: str) -> list[str]:
    """Code in the text and the tables of a page; of COMING_FROM's tables without the first column, which is theirs."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    if page == "docs/COMING_FROM.md":
        text = re.sub(r"^\| .*? \| ", "", text.replace("\\|", " "), flags=re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


def flags_of(command: str) -> set[str]:
    parser = build_parser(command)
    own = next(action for action in parser._actions if action.dest == "command").choices[command]
    return {flag for action in own._actions for flag in action.option_strings}


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_flags_in_the_text_exist(page: str) -> None:
    known = {command: flags_of(command) for command in COMMANDS}
    anywhere = set().union(*known.values())
    for span in spans(page):
        words = span.split()
        given = {word.partition("=")[0] for word in words if re.match(r"--?\w", word)}
        if words[0] == "gpt2" and len(words) > 1:
            assert words[1] in known, span
            assert given <= known[words[1]], span
        elif page == "docs/COMING_FROM.md" and words[0].startswith("--"):
            assert given <= anywhere, span


def test_keys_of_the_params_file_that_a_page_names_exist() -> None:
    sections = Params().model_dump(by_alias=True)
    for page in PAGES:
        for span in spans(page):
            key = re.fullmatch(r"((?:run|data|model|train|evaluate|sample|register)(?:\.(?!json)\w+)+)(?::.*)?", span)
            if key is None:
                continue
            value: Any = sections
            for part in key[1].split("."):
                assert part in value, f"{page}: {span}"
                value = value[part]


def test_a_new_command_on_a_page_is_found(tmp_path: Path) -> None:
    page = 'text\n```bash\ngpt2 one --prompt "a # b" \\\n  --x 1   # why\n\n# only a comment\nmake run\n```\n'
    (block,) = blocks_of(page)
    assert block.line == 3
    assert block.commands == ['gpt2 one --prompt "a # b" --x 1', "make run"]
    reader = Reader(tmp_path, os.environ)
    assert reader.run("echo one && export A=5") == "one\n"
    assert shutil.which("curl"), "docs/serving.md needs curl"
    with pytest.raises(AssertionError, match="ended with 3"):
        reader.run("exit 3")
