"""What libraries notice reaches the user as one line: a full disk, no access, no memory, damaged reports."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.data.batches import Batches
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.runtime import pick_runtime
from gpt2core.storage.hf import save_tensors
from gpt2core.training.config import TrainerConfig
from gpt2core.training.graphed_step import make_train_step
from gpt2ops.cli.flags.finetune import add_arguments, flag_names
from gpt2ops.params.schema import check_sequence_length
from gpt2ops.pipeline import paths
from gpt2ops.pipeline.cache import restore
from gpt2ops.pipeline.results import read_report, read_rows
from gpt2ops.process.failures import failure_line
from gpt2ops.process.signals import RANK_VARIABLES
from gpt2ops.process.stage import run_stage
from gpt2ops.training.initial_model import best_model, load_model
from gpt2ops.training.memory import GIB, check_memory

ROOT = Path(__file__).resolve().parents[3]
TINY = GPTConfig(50257, 16, n_layer=1, n_head=2, n_embd=8)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "data/raw/a.txt", None, "b.txt"), "no space left on the disk at b.txt"),
        (PermissionError(13, "Permission denied", "models/best"), "no access at models/best (Permission denied)"),
        (OSError(30, "Read-only file system", "data/raw"), "no access at data/raw"),
        (NotADirectoryError(20, "Not a directory", "models/checkpoints"), "models/checkpoints: Not a directory"),
        (MemoryError(), "train.micro_batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "train.micro_batch_size"),
    ],
)
def test_an_error_of_the_machine_ends_the_stage_with_one_line(capsys, error: Exception, words: str) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_stage("finetune", main)
    lines = capsys.readouterr().err.splitlines()
    assert (end.value.code, len(lines)) == (1, 1)
    assert words in lines[0]


def test_ranks_that_fail_alike_say_so_once(capsys, monkeypatch) -> None:
    def main() -> None:
        raise MemoryError

    said = []
    for rank in ("0", "1"):
        for name in RANK_VARIABLES:  # as torchrun does
            monkeypatch.setenv(name, rank)
        with pytest.raises(SystemExit) as end:
            run_stage("finetune", main)
        assert end.value.code == 1
        said.append(capsys.readouterr().err.count("finetune: error"))
    assert said == [1, 0]


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "x"},
        *(dict.fromkeys(RANK_VARIABLES - {absent}, "1") for absent in sorted(RANK_VARIABLES)),
    ],
)
def test_ranks_left_in_the_environment_by_another_program_silence_nothing(left, capsys, monkeypatch) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)

    def main() -> None:
        raise MemoryError

    with pytest.raises(SystemExit):
        run_stage("finetune", main)
    assert capsys.readouterr().err.count("finetune: error") == 1


def test_memory_that_pytorch_cannot_get_on_a_cpu_points_at_the_micro_batch() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    line = failure_line("finetune", error.value)
    assert line is not None
    assert "train.micro_batch_size" in line


class TenTokens(list):
    name = "train"


@pytest.mark.parametrize(
    ("late", "argument", "key", "flag"),
    [
        (lambda: pick_runtime("cpu", "fp16"), "precision ('fp16')", "run.precision ('fp16')", "--precision (fp16)"),
        (
            lambda: Batches(TenTokens(range(10)), batch_size=2, sequence_length=16, sampler="shuffled"),
            "batch_size (2) is too large: the train split has 10 tokens, and one batch needs 18 with sequence_length",
            "train.batch_size (2) is too large: the train split has 10 tokens, and one batch needs 18 with "
            "train.sequence_length (16)",
            "--batch-size (2) is too large: the train split has 10 tokens, and one batch needs 18 with "
            "--block-size (16)",
        ),
        (
            lambda: check_sequence_length(2048, 1024),
            "train.sequence_length (2048)",
            "train.sequence_length (2048) must not exceed the model's block_size (1024)",
            "--block-size (2048) must not exceed the model's block_size (1024)",
        ),
        (
            lambda: make_train_step(GPT(TINY), TrainerConfig(cuda_graph="on"), pick_runtime("cpu", "fp32"), 1, 1),
            "cuda_graph ('on') is impossible",
            "train.cuda_graph ('on') is impossible",
            "train.cuda_graph (on) is impossible",
        ),
    ],
)
def test_a_wrong_setting_found_late_is_named_by_the_library_the_stage_and_the_command_in_their_words(
    late: Callable[[], object], argument: str, key: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as error:
        late()
    assert str(error.value).startswith(argument)
    assert str(failure_line("finetune", error.value)).startswith(key)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    monkeypatch.setenv("GPT2_FLAGS", json.dumps(flag_names(parser.parse_args([]))))
    assert str(failure_line("finetune", error.value)).startswith(flag)


# As the C code of torch does it: an interrupted import of NumPy is forgotten, and the next one fails for good.
INTERRUPTED_IMPORT = """
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == WANTED and not getattr(sys, "told", False):
            sys.told = True
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("cannot load module more than once per process") from None

sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize(
    ("module", "library"),
    [
        ("tasks.finetune", "numpy"),
        ("tasks.evaluate", "gpt2core.evaluation.scores"),
        ("gpt2ops.projects.reproduce", "dvc.repo"),
        ("flows.fine_tune", "prefect"),
    ],
)
def test_ctrl_c_that_an_import_takes_for_another_error_is_one_line(module: str, library: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED_IMPORT.replace("WANTED", repr(library)))
    result = subprocess.run(
        [sys.executable, "-m", module],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_asked_to_leave_while_a_library_makes_another_error_of_it(number: int, code: int, capsys) -> None:
    def main() -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            raise ImportError("cannot load module") from None

    with pytest.raises(SystemExit) as end:
        run_stage("plot", main)
    assert end.value.code == code
    assert capsys.readouterr().err.splitlines()[0] == "plot: interrupted (ImportError: cannot load module)"


def test_an_error_of_this_project_keeps_its_traceback() -> None:
    def main() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_stage("finetune", main)


def test_a_disk_too_full_for_weights_is_an_os_error(tmp_path: Path, monkeypatch) -> None:
    import gpt2core.storage.hf as hf
    from gpt2core.storage.hf import SafetensorError

    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(hf, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_tensors({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert error.value.errno == 28


def test_a_model_that_cannot_fit_into_memory_is_refused_before_it_is_made() -> None:
    huge = GPTConfig(50257, 128, n_layer=1000, n_head=8, n_embd=65_536)
    with pytest.raises(UserError, match=r"51,5.*parameters.*lower model.n_layer \(1000\)"):
        check_memory(huge, device="cpu", micro_tokens=1)
    with pytest.raises(UserError, match="train.micro_batch_size"):
        check_memory(TINY, device="cpu", micro_tokens=200_000, memory_bytes=16 * GIB)
    check_memory(TINY, device="cpu", micro_tokens=512, memory_bytes=16 * GIB)
    smallest = 8 * TINY.num_parameters + 2 * TINY.vocab_size  # weights and gradients, and the logits of one token
    check_memory(TINY, device="cpu", micro_tokens=1, optimizer="adafactor", memory_bytes=smallest)
    with pytest.raises(UserError, match="GiB"):
        check_memory(TINY, device="cpu", micro_tokens=1, memory_bytes=smallest)


@pytest.mark.parametrize("bias", [True, False])
def test_the_count_of_parameters_needs_no_model(bias: bool) -> None:
    config = GPTConfig(31, 8, n_layer=3, n_head=2, n_embd=8, n_inner=20, qkv_bias=bias)
    assert config.num_parameters == GPT(config).num_parameters()
    assert GPTConfig.from_preset("gpt2").num_parameters == 124_439_808


def test_a_model_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    GPT(GPTConfig(1000, 16, n_layer=1, n_head=2, n_embd=8)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model.init .*vocab_size is 1000, but GPT-2's tokenizer has 50257"):
        load_model(str(tmp_path), "model.init")
    with pytest.raises(UserError, match="--model .'nowhere'.: no such folder"):
        load_model("nowhere", "--model")


def test_a_missing_best_model_says_which_stage_makes_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="models/best/model.safetensors is missing: run the stage finetune first"):
        best_model()


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"steps": 1}', "\udcff"])
def test_a_damaged_report_names_its_stage(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="train.json is damaged .*dvc repro --force finetune") as error:
        read_report(path, "finetune", ("steps", "target_loss"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "{}", "null", "[1]", '[{"loss": 1}]'])
def test_a_damaged_history_names_its_stage(tmp_path: Path, content: str) -> None:
    (tmp_path / "history.json").write_text(content)
    with pytest.raises(UserError, match="dvc repro --force finetune"):
        read_rows(tmp_path / "history.json", "finetune")
    with pytest.raises(UserError, match="is missing: run the stage finetune first"):
        read_rows(tmp_path / "other.json", "finetune")


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", '{"files": []}', '{"source": "a", "size_bytes": 1, "files": [3]}',
        '{"source": "a", "size_bytes": 1, "files": [{"file": 7}]}',
        '{"source": "a", "size_bytes": 1, "files": [{"file": "../params.yaml"}]}',
    ],
)  # fmt: skip
def test_a_damaged_provenance_is_one_line(tmp_path: Path, monkeypatch, content: str) -> None:
    from tasks.tokenize import read_provenance

    monkeypatch.chdir(tmp_path)
    paths.RAW.mkdir(parents=True)
    paths.PROVENANCE.write_text(content)
    with pytest.raises(UserError, match="provenance.json is damaged"):
        read_provenance()


def test_an_output_that_the_disk_cannot_take_back_stays_away(tmp_path: Path, monkeypatch) -> None:
    import gpt2ops.pipeline.cache as outputs

    monkeypatch.chdir(tmp_path)
    cached = tmp_path / "cache/files/md5/ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    cached.write_text(json.dumps({}))

    def full(source: Path, path: Path) -> None:
        path.write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        restore({"path": "out.json", "md5": "ab" + "c" * 30}, tmp_path / "cache")
    assert not Path("out.json").exists()


def test_what_a_message_quotes_of_a_file_stays_one_line_that_can_be_read() -> None:
    message = str(UserError("a\nb\x1b[31m\udc80.txt is missing", "x" * 100_000 + "; give another."))
    first, second = message.splitlines()
    assert first == r"a\nb\x1b[31m\udc80.txt is missing"
    assert len(second) <= 1000
    assert second.endswith("; give another.")
    assert "\n" not in str(failure_line("gpt2", FileNotFoundError(2, "No such file", "a\nb")))


def test_a_name_that_is_too_long_for_a_file_is_shortened() -> None:
    with pytest.raises(OSError, match="too long") as caught:
        Path("x" * 5000).stat()
    assert len(str(failure_line("gpt2", caught.value))) <= 1000


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 5000, "\ufeff{}", '{"a": '])
def test_a_report_that_a_parser_stumbles_over_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(UserError, match="is damaged") as caught:
        read_report(tmp_path / "train.json", "finetune", ())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("damage", [{"steps": "many"}, {"tokens_seen": None}, {"train_loss": 10**400}, {}])
def test_a_summary_of_damaged_reports_says_which_to_make_again(tmp_path: Path, monkeypatch, damage) -> None:
    from gpt2ops.reporting.summary import summary_lines

    monkeypatch.chdir(tmp_path)
    paths.TRAIN_METRICS.parent.mkdir(parents=True)
    whole = {"steps": 1, "tokens_seen": 2, "wall_seconds": 3.0}
    paths.TRAIN_METRICS.write_text(json.dumps({**whole, **damage} if damage else {"steps": 1}))
    with pytest.raises(UserError, match=r"reports/metrics/train.json.*run the pipeline again"):
        summary_lines()


@pytest.mark.parametrize("metrics", [[1], {"train": [1, 2]}, {"train": "x"}])
def test_a_model_card_of_damaged_reports_is_refused_or_says_less(tmp_path: Path, monkeypatch, metrics) -> None:
    from gpt2ops.publishing.model_facts import gather_facts

    monkeypatch.chdir(tmp_path)
    for path, value in ((paths.RUN, {"run_id": "ab"}), (paths.EVALUATE_METRICS, metrics)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    paths.BEST_MODEL.mkdir()
    with pytest.raises(UserError, match=r"evaluate.json is damaged"):
        gather_facts("models/best", paths.BEST_MODEL, TINY)
    paths.RUN.write_text("[1]")
    with pytest.raises(UserError, match=r"run.json is damaged"):
        gather_facts("models/best", paths.BEST_MODEL, TINY)


@pytest.mark.parametrize("damage", ["[1]", '{"step": 1}', '{"step": 1' + "0" * 400 + "}", "[" * 100_000])
def test_a_damaged_status_of_a_training_is_as_none(tmp_path: Path, damage: str) -> None:
    from gpt2ops.training.status import LiveStatus, read_status, write_status

    write_status(LiveStatus(1, 9, 3.5, None, 9.0, "ab", "1", 0), tmp_path / "status.json")
    whole = json.loads((tmp_path / "status.json").read_text())
    assert read_status(tmp_path / "status.json") is not None
    if damage.startswith("{"):
        damage = json.dumps({**whole, "loss": 10**400})
    (tmp_path / "status.json").write_text(damage)
    assert read_status(tmp_path / "status.json") is None
