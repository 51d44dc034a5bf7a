"""`gpt2 finetune`: what its flags mean, and one real run that is interrupted, finished, evaluated and made again."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gpt2core import __version__
from gpt2core.errors import UserError
from gpt2core.storage.files import read_json, sha256_file
from gpt2ops.cli.commands.finetune import checked_params
from gpt2ops.cli.main import build_parser
from gpt2ops.params.schema import Params, load_params, parse_params
from gpt2ops.registry.runs import find_run
from gpt2ops.store.client import connect
from tests.support.command import PROGRAM, Result, environment, run_here
from tests.support.waiting import HANGS, wait_until

CORPUS = Path(__file__).resolve().parents[3] / "data/corpus/shakespeare-plays.txt"


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("Once upon a time there was a fox.\n" * 50)
    return tmp_path / "my.txt"


def params_of(*flags: str) -> Params:
    import yaml

    arguments = build_parser("finetune").parse_args(
        ["finetune", "--train-file", "my.txt", "--output-dir", "my model", *flags]
    )
    return parse_params(yaml.safe_load(checked_params(arguments, Path(arguments.output_dir))))


def test_the_line_of_the_issue_means_what_it_says(text: Path) -> None:
    line = (
        "--model gpt2-medium --block-size 256 --batch-size 8 --epochs 5 --learning-rate 2e-5 --save-steps 500 --seed 42"
    )
    params = params_of(*line.split())
    assert params.model.init == "gpt2-medium"
    assert (params.train.sequence_length, params.train.batch_size, params.train.learning_rate) == (256, 8, 2e-5)
    assert (params.train.stop.max_epochs, params.train.stop.max_steps, params.train.stop.target_loss) == (5, None, None)
    assert (params.train.checkpoint_interval, params.run.seed, params.train.optimizer) == (500, 42, "adamw")
    assert params.data.source == params.data.watch == str(text)
    assert (params.register_.name, params.register_.text_name) == ("my-model", "my-model-text")
    assert params.sample.prompts == ["Once upon a time", ""]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--batch-size 2 --gradient-accumulation-steps 8", {"batch_size": 16, "micro_batch_size": 2}),
        ("--gradient-accumulation-steps 2", {"batch_size": 16, "micro_batch_size": 8}),
        ("--max_steps 7", {"stop.max_steps": 7, "stop.max_epochs": None}),
        ("--epochs 2 --max-steps 7", {"stop.max_steps": 7, "stop.max_epochs": 2}),
        (
            "--target-loss 1.5 --target-metric val",
            {"stop.target_loss": 1.5, "stop.metric": "val", "stop.max_epochs": 100},
        ),
        ("--model_name_or_path gpt2-large --num_train_epochs 4 --do_train", {"stop.max_epochs": 4}),
        ("--per_device_train_batch_size 3 --lr_scheduler_type linear", {"batch_size": 3, "schedule": "linear"}),
        ("--steps 9 --save_every 4", {"stop.max_steps": 9, "checkpoint_interval": 4}),
        ("--set train.stride=5 --set train.sampler=sliding", {"stride": 5, "sampler": "sliding"}),
        ("--epochs 2 --set train.stop.max_epochs=6", {"stop.max_epochs": 6}),
        ("--from-scratch --learning-rate 1e-4", {"min_learning_rate": 5e-6, "optimizer": "muon"}),
        ("--preset tinystories --block-size 256", {"sequence_length": 256}),
        ("--from-scratch --block-size 256", {"sequence_length": 256}),
        ("--from-scratch --preset tinystories", {"sequence_length": 256}),
        ("--from-scratch", {"warmup_steps": 100}),
        ("--from-scratch --max-steps 60", {"warmup_steps": None}),
        ("--from-scratch --max-steps 60 --warmup-steps 5", {"warmup_steps": 5}),
        ("--no-resume --eval-steps 50", {"resume": False, "eval_interval": 50}),
    ],
)
def test_flags_of_this_and_other_tools_set_the_keys_they_stand_for(text: Path, flags: str, expected: dict) -> None:
    train = params_of(*flags.split()).train
    for key, value in expected.items():
        found = train
        for name in key.split("."):
            found = getattr(found, name)
        assert found == value, key


@pytest.mark.parametrize("length", [32, 256])
def test_new_weights_have_the_positions_that_are_trained_and_released_ones_keep_theirs(text: Path, length: int) -> None:
    assert params_of("--from-scratch", "--block-size", str(length)).model.block_size == length
    assert params_of("--model", "gpt2", "--block-size", str(length)).model.block_size is None


def test_the_held_out_share_is_taken_twice(text: Path) -> None:
    split = params_of("--validation-split-percentage", "5").data.split
    assert (split.train, split.val, split.test) == (0.9, 0.05, 0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--learning-rate 20", "--learning-rate (20): input should be less than or equal to 10."),
        ("--batch-size 0", "--batch-size (0): input should be greater than or equal to 1."),
        (
            "--from-scratch --block-size 256 --set model.block_size=128",
            "--block-size (256) must not exceed the model's block_size",
        ),
        ("--learning-rate 1e-6 --set train.min_learning_rate=1e-5", "must not exceed --learning-rate (1e-06)"),
        ("--set train.lerning_rate=1", "unknown key train.lerning_rate; did you mean learning_rate?"),
        ("--set batch", "'batch' is not an override; write section.key=value"),
        (
            "--model gpt2-mediun",
            "--model ('gpt2-mediun'): no such folder, and no released model; did you mean gpt2-medium?",
        ),
        ("--model .", "has no config.json"),
        ("--model gpt2 --preset small", "--preset is for new weights, and --model brings its own sizes"),
        ("--validation-split-percentage 60", "--validation-split-percentage (60) must be at least 0 and below 50."),
        ("--gradient-accumulation-steps 0", "--gradient-accumulation-steps (0) must be at least 1."),
        ("--train-file nope.txt", "--train-file: nope.txt is missing"),
    ],
)
def test_a_wrong_value_is_one_line_in_words_of_flags(text: Path, flags: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        params_of(*flags.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_files_is_left_alone(text: Path, capsys, monkeypatch) -> None:
    arguments = ("finetune", "--train-file", "my.txt", "--output-dir", ".")
    assert run_here(capsys, monkeypatch, *arguments).is_one_line("--output-dir: . has other files in it")
    assert [path.name for path in text.parent.iterdir()] == ["my.txt"]
    assert run_here(capsys, monkeypatch, "finetune", "--train-file", "my.txt").is_one_line("--output-dir is missing")


def test_a_text_too_short_for_the_batch_is_found_late_and_named_by_its_flags(text: Path) -> None:
    flags = "--from-scratch --batch-size 100 --block-size 16 --device cpu --set data.split_by=tokens"
    command = [*PROGRAM, "finetune", "--train-file", "my.txt", "--output-dir", "out", *flags.split()]
    done = subprocess.run(command, cwd=text.parent, env=environment(), capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 1
    assert re.search(
        r"^finetune: error: --batch-size \(100\) is too large: .* with --block-size \(16\);", done.stderr, re.M
    )


# One real run


LINE = """
    finetune --from-scratch --train-file my.txt --output-dir my_model --block-size 16 --batch-size 4
    --max-steps 150 --eval-steps 50 --save-steps 20 --logging-steps 20 --seed 7 --device cpu --precision fp32
    --set model.n_layer=1 --set model.n_head=2 --set model.n_embd=16 --set model.block_size=32 --set run.threads=1
    --set data.split_by=tokens --set evaluate.max_tokens=200 --set evaluate.recall_passages=2
    --set sample.max_new_tokens=2 --set train.sample_tokens=2
"""
FLAGS = shlex.split(LINE)


class Folder:
    """Where the command is typed, and how the first two times went."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.interrupted = Result(-1, "", "")
        self.orphans: list[psutil.Process] = []
        self.again = ""

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*PROGRAM, *arguments], cwd=self.root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, preexec_fn=hear_interrupts,
        )  # fmt: skip

    def run(self, *arguments: str) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=HANGS)
        assert process.returncode == 0, out + err
        return out


def hear_interrupts() -> None:
    """A suite that runs in the background has Ctrl-C ignored, and its children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Where a training was interrupted once by Ctrl-C, and its command typed again."""
    root = tmp_path_factory.mktemp("finetune")
    (root / "my.txt").write_text(CORPUS.read_text(encoding="utf-8")[:20_000])
    folder = Folder(root)
    process = folder.start(*FLAGS)
    wait_until(lambda: list(root.glob("my_model/project/models/checkpoints/*/step-*")), process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    assert "another command works in my_model" in folder.start(*FLAGS).communicate(timeout=HANGS)[1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANGS)
    folder.interrupted = Result(process.returncode, out, err)
    folder.orphans = psutil.wait_procs(family, timeout=30)[1]
    folder.again = folder.run(*FLAGS)
    return folder


@pytest.fixture
def gpt2(folder: Folder, capsys, monkeypatch):
    """In this process, which has MLflow loaded already."""
    monkeypatch.chdir(folder.root)
    for name in ("MLFLOW_TRACKING_URI", "GPT2_PROJECT_ROOT", "GPT2_FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> str:
        result = run_here(capsys, monkeypatch, *arguments)
        assert result.code == 0, result.err
        return result.out

    return run


pipeline = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send"),
]


class TestOneRun:
    pytestmark = pipeline

    def test_ctrl_c_saves_leaves_nobody_behind_and_says_how_to_go_on(self, folder: Folder) -> None:
        assert folder.interrupted.code == 130
        assert folder.orphans == []
        last = folder.interrupted.err.strip().splitlines()[-1]
        assert last == "gpt2: interrupted; the checkpoint is saved, and the same command resumes from it"

    def test_the_same_command_goes_on_from_the_checkpoint(self, folder: Folder) -> None:
        assert "resuming after step" in folder.again
        assert "-- tokenize" not in folder.again, "it was done"
        history = read_json(folder.root / "my_model/project/reports/training_history.json")
        assert [row["step"] for row in history][-1] == 150

    def test_the_model_lies_in_the_hugging_face_layout_with_its_report(self, folder: Folder, offline: None) -> None:
        from transformers import AutoTokenizer, GPT2LMHeadModel

        output = folder.root / "my_model"
        assert GPT2LMHeadModel.from_pretrained(output).config.n_positions == 32
        assert AutoTokenizer.from_pretrained(output)("To be").input_ids == [2514, 307]
        assert (output / "report.html").stat().st_size > 10_000
        assert "my_model/report.html" in folder.again
        assert "gpt2 generate --model my_model --prompt " in folder.again

    def test_the_same_command_after_its_end_changes_nothing(self, folder: Folder) -> None:
        before = (folder.root / "my_model/model.safetensors").stat().st_mtime_ns
        found = json.loads(folder.run(*FLAGS, "--json"))
        assert found["changed"] is False
        assert found["train"]["steps"] == 150
        assert found["model"] == "models:/my_model/1"
        assert (folder.root / "my_model/model.safetensors").stat().st_mtime_ns == before

    def test_it_is_one_run_in_the_store_of_the_folder(self, folder: Folder, gpt2) -> None:
        (run,) = json.loads(gpt2("runs", "--json"))
        assert run["state"] == "done"
        assert run["params"]["train.batch_size"] == "4"
        assert run["tags"]["project_folder"] == "my_model/project"
        assert run["tags"]["weights_sha256"] == sha256_file(folder.root / "my_model/model.safetensors")

    def test_evaluate_gives_the_numbers_of_the_pipeline(self, folder: Folder, gpt2) -> None:
        protocol = ["--max-tokens", "200", "--device", "cpu", "--precision", "fp32"]
        found = json.loads(gpt2("evaluate", "--model", "my_model", "--data", "my_model/project", *protocol, "--json"))
        expected = read_json(folder.root / "my_model/project/reports/metrics/evaluate.json")
        for split in ("train", "val", "test"):
            assert found["scores"][split]["loss"] == pytest.approx(expected[split]["loss"], abs=1e-5)
        texts = gpt2("evaluate", "--model", "my_model", "--file", "my.txt", *protocol)
        # The text begins with the training text, in the same windows.
        row = next(line for line in texts.splitlines() if line.startswith("my.txt"))
        assert float(row.split()[2]) == pytest.approx(expected["train"]["loss"], abs=1e-4)

    def test_a_rerun_gives_the_same_weights_to_the_last_bit(self, folder: Folder, gpt2) -> None:
        shutil.move(folder.root / "my.txt", folder.root / "gone.txt")  # DVC's cache has it
        try:
            found = json.loads(folder.run("rerun", "models:/my_model@champion", "--dir", "again", "--json"))
        finally:
            shutil.move(folder.root / "gone.txt", folder.root / "my.txt")
        assert found["same_weights"] is True
        assert found["differences"] == {}
        first, again = (
            root / "model.safetensors" for root in (folder.root / "my_model", folder.root / "again/models/best")
        )
        assert first.read_bytes() == again.read_bytes()
        assert load_params(folder.root / "again/params.yaml") == load_params(
            folder.root / "my_model/project/params.yaml"
        )
        runs = json.loads(gpt2("runs", "--json"))
        assert runs[0]["tags"]["rerun_of"] == runs[1]["run_id"]
        assert "all settings are the same" in gpt2("compare", runs[0]["run_id"], runs[1]["run_id"])
        assert len(gpt2("models", "list", "my_model").splitlines()) == 2, "the registry stays as it is"

    def test_a_run_of_other_code_is_not_made_again_in_silence(self, folder: Folder, gpt2, capsys, monkeypatch) -> None:
        run = find_run("models:/my_model/1").run_id
        connect().set_tag(run, "code_sha256", "ab" * 32)
        connect().set_tag(run, "code_commit", "ab" * 20)
        result = run_here(capsys, monkeypatch, "rerun", run, "--dir", "other")
        assert result.code == 1
        assert (
            f"was made by different code (version {__version__}, commit abababababab, which is in no repository here)"
            in result.err
        )
        assert not (folder.root / "other").exists()
