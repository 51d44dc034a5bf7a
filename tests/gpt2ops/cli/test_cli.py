"""The gpt2 command as a user types it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gpt2core.config import GPTConfig
from gpt2core.decoding import generate
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2ops.cli.flags.decoding import decoding_setting, parse_setting
from gpt2ops.cli.main import build_parser
from gpt2ops.params.decoding import STRATEGIES
from gpt2ops.params.sections import SampleSetting
from tests.support.command import Result, run_here
from tests.support.waiting import HANGS, wait_until

ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = Tokenizer()
COMMAND = [sys.executable, "-c", "from gpt2ops.cli.main import main; main()", "generate"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    GPT(GPTConfig(50257, 64, n_layer=1, n_head=2, n_embd=16)).save_pretrained(directory)
    TOKENIZER.save(directory)
    return directory


@pytest.fixture
def gpt2(model_directory: Path, offline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `gpt2 generate` in this process, with the small model unless another is named."""

    def run(*arguments: str) -> Result:
        model = [] if "--model" in arguments else ["--model", str(model_directory)]
        return run_here(capsys, monkeypatch, "generate", *model, *arguments)

    return run


def assert_one_line(result: Result, message: str, code: int = 1) -> None:
    assert result.code == code, result.err
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert result.out == ""


def test_a_seed_repeats_the_text_and_text_k_is_that_of_seed_plus_k(gpt2) -> None:
    arguments = ["--prompt", "To be", "--max-new-tokens", "8"]
    first = gpt2(*arguments, "--seed", "3")
    assert first.code == 0, first.err
    assert first.out.startswith("To be")
    assert gpt2(*arguments, "--seed", "3").out == first.out
    second = gpt2(*arguments, "--seed", "4")
    assert second.out != first.out
    several = gpt2(*arguments, "--seed", "3", "--num-sequences", "2").out
    assert several == f"--- 1 ---\n{first.out}--- 2 ---\n{second.out}"


DRAWN = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("--decoding greedy", {}),
        ("--temperature 1.3", {**DRAWN, "temperature": 1.3}),
        ("--top-k off --min-p 0.1", {**DRAWN, "top_k": None, "min_p": 0.1}),
        ("--decoding beam --num-beams 3 --early-stopping never", {"num_beams": 3, "early_stopping": "never"}),
        ("--decoding beam-sample --num-beams 2", {**DRAWN, "num_beams": 2}),
        ("--decoding group-beam", {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}),
        ("--decoding contrastive --top-k 3", {"penalty_alpha": 0.6, "top_k": 3}),
        ("--decoding prompt-lookup", {"prompt_lookup_num_tokens": 10}),
        ("--decoding greedy --no-repeat-ngram-size 2", {"no_repeat_ngram_size": 2}),
        ("--decoding greedy --repetition-penalty 1.2", {"repetition_penalty": 1.2}),
        ("--decoding greedy --suppress-token 11 --suppress-token 13", {"suppress_tokens": [11, 13]}),
        ("--decoding greedy --past-block-size slide --max-new-tokens 70", {"past_block_size": "slide"}),
    ],
)
def test_flags_are_the_options_of_generate(gpt2, model_directory: Path, flags: str, options: dict) -> None:
    prompt = TOKENIZER.encode("To be")
    model = GPT.from_pretrained(model_directory)
    count = 70 if "slide" in flags else 12
    row = generate(model, [prompt], seed=[5], max_new_tokens=count, **options)[0, len(prompt) :].tolist()
    length = ["--max-new-tokens", str(count)]
    (found,) = gpt2("--prompt", "To be", "--seed", "5", "--json", *length, *flags.split()).objects
    assert found["token_ids"] == row
    assert found["text"] == TOKENIZER.decode(row)


def test_json_tells_what_was_written_and_how_likely_it_was(gpt2, model_directory: Path) -> None:
    first, second = gpt2(
        "--prompt", "é", "--seed", "1", "--num-sequences", "2", "--max-new-tokens", "6", "--json"
    ).objects
    assert (first["prompt"], first["sequence"], first["seed"]) == ("é", 1, 1)
    assert (second["sequence"], second["seed"]) == (2, 2)
    assert (first["tokens"], first["finish_reason"]) == (6, "length")
    ids = torch.tensor([TOKENIZER.encode("é") + first["token_ids"]])
    logits = GPT.from_pretrained(model_directory)(ids[:, :-1])[0, -6:]
    expected = logits.log_softmax(-1).gather(1, ids[0, -6:, None]).mean().item()
    assert first["mean_log_prob"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("decoding", ["greedy", "contrastive", "prompt-lookup"])
def test_every_text_that_grows_can_be_streamed(gpt2, decoding: str) -> None:
    arguments = ["--prompt", "A B A", "--decoding", decoding, "--max-new-tokens", "9"]
    result = gpt2(*arguments, "--stream")
    assert result.out == gpt2(*arguments).out, result.err


def test_streamed_pieces_are_the_same_texts(gpt2) -> None:
    arguments = ["--prompt", "A", "--seed", "3", "--num-sequences", "2", "--max-new-tokens", "9"]
    assert gpt2(*arguments, "--stream").out == gpt2(*arguments).out
    objects = gpt2(*arguments, "--stream", "--json").objects
    whole = gpt2(*arguments, "--json").objects
    assert [one for one in objects if "text" in one] == whole
    assert "".join(one["piece"] for one in objects if one.get("sequence") == 2 and "piece" in one) == whole[1]["text"]


def test_a_stop_text_ends_the_text_and_a_bad_word_is_not_written(gpt2) -> None:
    arguments = ["--prompt", "A", "--decoding", "greedy", "--max-new-tokens", "10", "--json"]
    (free,) = gpt2(*arguments).objects
    word = TOKENIZER.decode(free["token_ids"][:1])
    (stopped,) = gpt2(*arguments, "--stop", word).objects
    assert (stopped["tokens"], stopped["finish_reason"]) == (1, "stop")
    (other,) = gpt2(*arguments, "--bad-word", word).objects
    assert free["token_ids"][0] not in other["token_ids"]


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_weights_may_be_kept_smaller(gpt2, weights: str) -> None:
    (found,) = gpt2("--weights", weights, "--max-new-tokens", "4", "--seed", "1", "--json").objects
    assert found["tokens"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/folder"], "('no/such/folder'): no such folder"),
        (["--model", "gpt2"], "hf download openai-community/gpt2"),
        (["--model", "gpt2-medium"], "and set --model to its path"),
        (["--model", "models:/gpt2"], "--model ('models:/gpt2') must be models:/NAME@ALIAS"),
        (["--max-new-tokens", "500"], "at most 64 fit, or let the window slide (--past-block-size slide)"),
        (
            ["--prompt", "x y z " * 16_667],
            "longer than the model's block_size (64); shorten it, or let the window slide",
        ),
        (["--temperature", "0"], "--temperature (0) must be at least"),
        (["--temperature", "nan"], "--temperature (nan)"),
        (["--top-p", "1.5"], "--top-p (1.5) must be a number above 0 and at most 1."),
        (
            ["--decoding", "beam", "--num-beams", "0"],
            "--num-beams (0) must be a whole number of at least 1",
        ),
        (["--decoding", "beam", "--num-sequences", "6"], "--num-sequences (6) is above --num-beams (5)"),
        (["--decoding", "greedy", "--num-sequences", "2"], "--num-sequences (2) does not belong to greedy decoding"),
        (["--decoding", "greedy", "--top-p", "0.5"], "it shapes what is drawn at random (sample, beam-sample)"),
        (["--num-beams", "2"], "--num-beams (2) does not belong to sample decoding: it belongs to a beam search"),
        (["--min-new-tokens", "200"], "--min-new-tokens (200) is above --max-new-tokens (100)"),
        (["--seed", "-1"], "--seed (-1) must be a whole number of at least 0"),
        (["--stop", ""], "--stop (['']) has an empty text"),
        (["--stream", "--decoding", "beam"], "--stream: beam decoding knows its text only when it has finished"),
        (["--output", "x.jsonl"], "--output (x.jsonl) belongs to a --prompt-file that ends in .jsonl"),
        (["--batch-size", "2"], "--batch-size (2) belongs to"),
        (["--prompt", "a\udcff"], "--prompt: character 1 (U+DCFF) is a lone surrogate"),
        (["--prompt-file", "no.txt"], "--prompt-file: no.txt is missing."),
        (["--prompt-file", str(ROOT)], "is a folder; give a file"),
    ],
)
def test_a_mistake_is_one_line_and_a_failing_exit(gpt2, arguments: list[str], message: str) -> None:
    assert_one_line(gpt2(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-k", "x"], "argument --top-k: invalid int or off value: 'x' (see gpt2 generate --help)"),
        (["--decoding", "beem"], "argument --decoding: 'beem' is unknown; did you mean beam?"),
        (["--decoding", "beam", "--early-stopping", "perhaps"], "'perhaps' is none of true, false, never"),
        (["--prompt", "a", "--prompt-file", "b"], "--prompt-file: not allowed with argument --prompt"),
        (["--tempratur", "1"], "unknown flag --tempratur; did you mean --temperature?"),
    ],
)
def test_a_wrong_flag_is_one_line_without_the_usage(gpt2, arguments: list[str], message: str) -> None:
    assert_one_line(gpt2(*arguments), message, code=2)


def test_a_text_file_is_one_prompt_without_its_last_line_end(gpt2, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("\ufeffTwo\nlines é\n".encode())
    (found,) = gpt2("--prompt-file", str(file), "--max-new-tokens", "2", "--json").objects
    assert found["prompt"] == "Two\nlines é"
    file.write_bytes(b"caf\xe9")
    assert_one_line(gpt2("--prompt-file", str(file)), f"{file}: byte 3 (0xE9) is not valid UTF-8")


@pytest.mark.parametrize("flags", [["-"], ["--prompt-file", "-"]])
def test_a_dash_reads_the_prompt_from_standard_input(model_directory: Path, flags: list[str]) -> None:
    command = [*COMMAND, "--model", str(model_directory), "--max-new-tokens", "2", "--seed", "1", *flags]
    done = subprocess.run(command, input="Wörter\n".encode(), capture_output=True, env=ENVIRONMENT, check=True)
    assert done.stdout.decode().startswith("Wörter")


def test_json_loses_nothing_where_the_terminal_is_not_utf8(model_directory: Path) -> None:
    command = [*COMMAND, "--model", str(model_directory), "--max-new-tokens", "2", "--prompt", "中文"]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}, check=True
    )
    assert json.loads(done.stdout)["prompt"] == "中文"


# -- files of prompts ----------------------------------------------------------------------------------------------


def write_lines(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    own = [{}, {"max_new_tokens": 3}, {"seed": 9}, {"decoding": "greedy"}, {"temperature": 2.0, "num_sequences": 2}]
    lines = [{"prompt": "To be " * (number % 4), "id": number, **own[number % 5]} for number in range(11)]
    return write_lines(tmp_path / "prompts.jsonl", *lines[:4], "", *lines[4:])


def test_each_line_is_answered_in_order_with_its_own_settings(gpt2, prompts: Path) -> None:
    output = prompts.with_name("new") / "out.jsonl"
    flags = ["--max-new-tokens", "5", "--batch-size", "3"]
    result = gpt2("--prompt-file", str(prompts), "--output", str(output), *flags)
    assert result.code == 0, result.err
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [one["id"] for one in found] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 9, 10]
    assert [one["line"] for one in found][3:7] == [4, 6, 6, 7]  # line 5 is blank
    assert [one["tokens"] for one in found][:4] == [5, 3, 5, 5]
    assert found[2]["seed"] == 9
    assert found[3]["seed"] is None
    assert len({one["seed"] for one in found if one["seed"] is not None}) == 10  # 9 twice, all others apart
    for one in (found[0], found[5]):  # a line alone, with the seed that its answer names, gives the same text
        temperature = "2.0" if one["id"] == 4 else "0.8"
        alone = ["--prompt", one["prompt"], "--seed", str(one["seed"]), "--temperature", temperature]
        assert gpt2(*alone, "--max-new-tokens", "5", "--json").objects[0]["text"] == one["text"]


def test_texts_do_not_depend_on_the_batch(gpt2, prompts: Path) -> None:
    texts = []
    for size in ("1", "4", "50"):
        output = prompts.with_name(f"out-{size}.jsonl")
        gpt2("--prompt-file", str(prompts), "--output", str(output), "--max-new-tokens", "5", "--batch-size", size)
        texts.append([json.loads(line)["text"] for line in output.read_text().splitlines()])
    assert texts[0] == texts[1] == texts[2]


def test_a_cut_output_is_completed_to_the_same_bytes(gpt2, prompts: Path) -> None:
    output = prompts.with_name("out.jsonl")
    arguments = ["--prompt-file", str(prompts), "--output", str(output), "--max-new-tokens", "5", "--batch-size", "3"]
    gpt2(*arguments)
    whole = output.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (0, 1, ends[0], ends[0] - 1, ends[3] + 40, ends[4], ends[-2], ends[-1] - 1, ends[-1]):
        output.write_bytes(whole[:cut])
        result = gpt2(*arguments)
        assert result.code == 0, result.err
        assert output.read_bytes() == whole, cut


def test_an_output_of_other_prompts_or_settings_is_left_alone(gpt2, prompts: Path) -> None:
    output = prompts.with_name("out.jsonl")
    arguments = ["--prompt-file", str(prompts), "--output", str(output)]
    gpt2(*arguments, "--max-new-tokens", "5")
    whole = output.read_bytes()
    message = f"{output}, line 1 is not what {prompts} and these settings make"
    assert_one_line(gpt2(*arguments, "--max-new-tokens", "6"), message)
    write_lines(prompts, {"prompt": "something else"})
    assert_one_line(gpt2(*arguments, "--max-new-tokens", "5"), message)
    for foreign in (b"my notes", b"my notes\n", b"[" * 100_000, whole + b"more\n", whole + b"more"):
        output.write_bytes(foreign)
        assert_one_line(gpt2(*arguments, "--max-new-tokens", "5"), "is not what")
        assert output.read_bytes() == foreign
    output.write_bytes(whole)
    assert_one_line(gpt2("--prompt-file", str(output), "--output", str(output)), "is the file of the prompts")
    assert output.read_bytes() == whole


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(model_directory: Path, tmp_path: Path) -> None:
    prompts = write_lines(tmp_path / "prompts.jsonl", *({"prompt": f"line {number}"} for number in range(160)))
    flags = ["--model", str(model_directory), "--prompt-file", str(prompts), "--max-new-tokens", "4"]
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen([*COMMAND, *flags, "--output", str(output)], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_until(lambda: output.exists() and output.stat().st_size >= 500, process, interval=0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    begun = output.read_bytes()
    for name in (output, tmp_path / "whole.jsonl"):
        subprocess.run([*COMMAND, *flags, "--output", str(name)], env=ENVIRONMENT, check=True, capture_output=True)
    assert 0 < begun.count(b"\n") < 160
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert output.read_bytes().startswith(begun[: begun.rindex(b"\n") + 1])


def test_control_c_leaves_with_130_and_no_traceback(model_directory: Path) -> None:
    slow = ["--past-block-size", "slide", "--max-new-tokens", "1000000", "--stream", "--seed", "1"]
    process = subprocess.Popen(
        [*COMMAND, "--model", str(model_directory), *slow],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background jobs ignore SIGINT, and their children with them: the suite may be one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.read(20)  # it writes while it decodes
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=HANGS)
    assert (process.returncode, error.decode()) == (130, "gpt2: interrupted\n")


def test_a_reader_that_leaves_is_no_error(model_directory: Path) -> None:
    slow = ["--past-block-size", "slide", "--max-new-tokens", "1000000", "--stream", "--seed", "1"]
    process = subprocess.Popen(
        [*COMMAND, "--model", str(model_directory), *slow],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(20)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(HANGS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "b"', "not valid JSON"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ('{"prompt": 3}', 'must be an object with a text "prompt"'),
        ('"To be"', 'must be an object with a text "prompt"'),
        ('{"prompt": "b", "top_p": 1.5}', "top_p (1.5) must be a number above 0 and at most 1."),
        ('{"prompt": "b", "topp": 0.5}', "unknown key topp; did you mean top_p?"),
        ('{"prompt": "b", "temperature": "hot"}', "temperature (hot): input should be a valid number."),
        ('{"prompt": "b", "max_new_tokens": 65}', "do not fit into the model's block_size (64)"),
        ('{"prompt": "b", "decoding": "greedy", "top_k": 3}', "top_k (3) does not belong to greedy decoding"),
        ('{"prompt": "\\ud800"}', "character 0 (U+D800) is a lone surrogate"),
        ('{"prompt": "a", "id": ["\\udc80"]}', "(U+DC80) is a lone surrogate"),
        (b'{"prompt": "\xff"}', "byte 12 (0xFF) is not valid UTF-8"),
    ],
)
def test_a_malformed_line_is_named_before_anything_is_written(
    gpt2, tmp_path: Path, line: str | bytes, message: str
) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_bytes(b'{"prompt": "fine"}\n\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    result = gpt2("--prompt-file", str(prompts), "--output", str(output), "--max-new-tokens", "5")
    assert_one_line(result, f"{prompts}, line 3: ")
    assert message in result.err
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs --output OUT.jsonl for its texts"),
        (["--output", "o.jsonl", "--stream"], "--stream writes one text as it comes"),
        (["--output", "o.jsonl", "--batch-size", "0"], "--batch-size (0) must be at least 1"),
        (["--output", "o.jsonl", "--top-p", "1.5"], "--top-p (1.5) must be"),
    ],
)
def test_flags_that_a_file_of_prompts_needs_or_has_no_use_for(
    gpt2, prompts: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(prompts.parent)
    assert_one_line(gpt2("--prompt-file", str(prompts), *flags), message)


# -- what the pages say ----------------------------------------------------------------------------------------------


def commands_in(page: Path) -> list[str]:
    """The `gpt2 generate` commands in the page's blocks, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("gpt2 generate")]


@pytest.mark.parametrize("page", ["README.md", "docs/decoding.md"])
def test_commands_on_the_pages_are_good_ones(page: str) -> None:
    commands = commands_in(ROOT / page)
    assert len(commands) >= 4
    for command in commands:
        decoding_setting(build_parser().parse_args(shlex.split(command, comments=True)[1:]))


def test_what_the_page_on_decoding_shows_of_files_and_settings_is_good() -> None:
    page = (ROOT / "docs/decoding.md").read_text(encoding="utf-8")
    lines = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0].splitlines()
    for line in map(json.loads, lines):
        parse_setting({key: value for key, value in line.items() if key not in ("id", "prompt")})
    (shown,) = re.findall(r"`- (\{name:.*?\})`", page)
    SampleSetting.model_validate(yaml.safe_load(shown))
    headings = set(re.findall(r"^## (.*)$", page, re.MULTILINE))
    assert set(STRATEGIES) <= headings
