"""The command as a whole: its help, its mistakes, its completion."""

import os
import shlex
import subprocess
import sys

import pytest

from gpt2ops.cli.completion import SHELLS, completion_script
from gpt2ops.cli.main import COMMANDS, build_parser
from gpt2ops.cli.output import WIDTH, put_table
from gpt2ops.pipeline.code_version import package_version
from tests.support.command import PROGRAM, Result, environment, run_here


@pytest.fixture
def gpt2(capsys, monkeypatch):
    return lambda *arguments: run_here(capsys, monkeypatch, *arguments)


def test_help_names_every_command_and_the_exit_codes(gpt2) -> None:
    result = gpt2("--help")
    assert result.code == 0
    for name, command in COMMANDS.items():
        assert f"  {name} " in result.out
        assert command.help in result.out
    assert "0 done, 1 it failed (one line says why), 2 wrong flags, 130 interrupted" in result.out
    assert max(map(len, result.out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_and_shows_how_it_is_used(name: str, gpt2) -> None:
    text = gpt2(name, "--help").out
    assert text.startswith(f"usage: gpt2 {name}")
    own = build_parser(name)._subparsers._group_actions[0].choices[name]
    assert own.description
    assert f"gpt2 {name}" in f"{own.epilog} {own.description}", "an example"


def test_a_word_that_resembles_no_command_gets_the_list_instead_of_a_wild_guess(gpt2) -> None:
    assert gpt2("frobnicate").is_one_line("unknown command 'frobnicate'; there are init, finetune", code=2)


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", ["runs", "models list", "doctor", "gc", "verify", "--version", "generate --help"])
def test_output_that_is_closed_is_no_error_of_ours(arguments: str, closed: str, tmp_path) -> None:
    command = f"{shlex.join(PROGRAM)} {arguments} {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (done.returncode == 1 and closed == ">&-")


def test_the_version_is_that_of_the_package(gpt2) -> None:
    assert gpt2("--version").out == f"gpt2-workflow {package_version()}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["genrate"], "unknown command 'genrate'; did you mean generate?"),
        ([], "which command? There are init, finetune"),
        (["models", "promoet", "gpt2", "1"], "'promoet' is unknown; did you mean promote?"),
        (["completion", "powershell"], "'powershell' is unknown; there is bash, zsh"),
        (["finetune", "--learning-rat", "1"], "unknown flag --learning-rat; did you mean --learning-rate?"),
        (["finetune", "--epochs", "many"], "argument --epochs: invalid float value: 'many'"),
    ],
)
def test_a_mistyped_command_or_flag_is_one_line_with_the_nearest_known(arguments, message, gpt2) -> None:
    assert gpt2(*arguments).is_one_line(message, code=2)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_commands_flags_and_models(shell: str) -> None:
    script = completion_script(shell, build_parser())
    for word in ("finetune", "rollback", "learning-rate", "group-beam", *(["gpt2-medium"] if shell != "tcsh" else [])):
        assert word in script


def test_bash_completes_a_flag_and_a_model(tmp_path) -> None:
    script = tmp_path / "gpt2.bash"
    script.write_text(completion_script("bash", build_parser()))
    ask = f"""source {script}
    COMP_WORDS=(gpt2 finetune {{}}); COMP_CWORD={{}}; COMPREPLY=(); _shtab_gpt2; echo "${{{{COMPREPLY[@]}}}}" """
    for words, position, expected in (("--lea", 2, "--learning-rate"), ("--model gpt2-m", 3, "gpt2-medium")):
        done = subprocess.run(["bash", "-c", ask.format(words, position)], capture_output=True, text=True)
        assert expected in done.stdout.split(), done.stderr


def test_a_reader_that_leaves_early_ends_it_quietly() -> None:
    done = subprocess.run(
        ["bash", "-c", f"'{PROGRAM[0]}' -c '{PROGRAM[2]}' completion bash | head -1"],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""


def test_a_terminal_without_the_characters_shows_a_question_mark(tmp_path) -> None:
    text = tmp_path / "caf\u00e9-\u4e2d.txt"
    text.write_text("")
    done = subprocess.run(
        [*PROGRAM, "init", "new", "--train-file", os.fspath(text)],
        cwd=tmp_path, env={**environment(), "PYTHONIOENCODING": "latin-1"}, capture_output=True,
    )  # fmt: skip
    assert Result(done.returncode, "", done.stderr.decode("latin-1")).is_one_line("caf\u00e9-?.txt: the file is empty")


def test_a_table_fits_eighty_columns_by_shortening_the_middle_of_names(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    put_table(["RUN", "NAME", "LOSS"], [["3f99d95e", "a" * 60 + "b" * 60, "1.25"]], left=(0, 1), shrink=1)
    header, row = capsys.readouterr().out.splitlines()
    assert len(row) == WIDTH
    assert row.startswith("3f99d95e  aaaa")
    assert row.endswith("bbb  1.25")
    assert header.endswith("LOSS")


def test_a_table_in_a_pipe_has_its_names_whole(capsys) -> None:
    put_table(["RUN", "NAME"], [["3f99d95e", "a" * 90]], left=(0, 1), shrink=1)
    assert "a" * 90 in capsys.readouterr().out


@pytest.mark.parametrize("action", ["list", "promote", "rollback"])
def test_actions_on_registered_models_teach_in_their_help(action: str, capsys) -> None:
    with pytest.raises(SystemExit):
        build_parser("models").parse_args(["models", action, "--help"])
    said = capsys.readouterr().out
    assert f"gpt2 models {action}" in said.split("example")[-1]
    assert "ersion" in said.split("options:")[0]


def test_help_starts_fast_because_it_loads_neither_torch_nor_mlflow() -> None:
    code = (
        "import sys, gpt2ops.cli.main; gpt2ops.cli.main.build_parser(); print({'torch', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
