"""A stage among other processes: what started it, who listens to it, and other stages in its folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import HANGS, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

STAGE = """
import pathlib, sys, time
from gpt2ops.process.stage import run_stage, say
def main():
    try:
        say("working")
        for tick in range({ticks}):
            pathlib.Path("{name}.ticks").write_text(str(tick)); say("x" * 200); time.sleep(0.1)
        pathlib.Path("{name}.whole").touch()
    finally:
        pathlib.Path("{name}.closed").touch()
run_stage("{name}", main)
"""


def command(name: str, ticks: int) -> list[str]:
    return [sys.executable, "-c", STAGE.format(name=name, ticks=ticks)]


@pytest.fixture
def environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[3]
    return {**os.environ, "PYTHONPATH": str(root)}


def test_a_stage_whose_starter_was_killed_closes_what_it_has_open_and_leaves(tmp_path: Path, environment) -> None:
    starter = f"import subprocess; subprocess.run({command('orphan', 600)!r})"
    process = subprocess.Popen([sys.executable, "-c", starter], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    wait_until((tmp_path / "orphan.ticks").exists)
    process.kill()  # nobody waits for it yet: a zombie does not count as a starter
    wait_until((tmp_path / "orphan.closed").exists)
    process.communicate()
    assert not (tmp_path / "orphan.whole").exists()


def test_a_stage_works_on_when_nobody_listens_any_more(tmp_path: Path, environment) -> None:
    process = subprocess.Popen(command("unheard", 20), cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(HANGS) == 0
    assert (tmp_path / "unheard.whole").exists()


def test_a_character_that_the_terminal_cannot_show_is_no_error(tmp_path: Path, environment) -> None:
    code = "from gpt2ops.process.stage import run_stage, say; run_stage('say', lambda: say('naïve 日本'))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**environment, "PYTHONIOENCODING": "ascii"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, b"na?ve ??\n")


def test_sigterm_closes_what_is_open_and_is_told_by_the_exit_code(tmp_path: Path, environment) -> None:
    process = subprocess.Popen(
        command("asked", 600), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_until((tmp_path / "asked.ticks").exists)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=HANGS)
    assert (process.returncode, errors) == (128 + signal.SIGTERM, b"asked: interrupted\n")
    assert (tmp_path / "asked.closed").exists()


def test_a_second_stage_in_the_folder_waits_and_says_for_whom(tmp_path: Path, environment) -> None:
    first = subprocess.Popen(command("first", 6000), cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "first.ticks").exists, first)
    second = subprocess.Popen(command("second", 1), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert f"second: waiting for the stage first (process {first.pid})" in second.stdout.readline()
    assert not (tmp_path / "second.ticks").exists()
    first.terminate()
    second.communicate(timeout=HANGS)
    assert (first.wait(), second.returncode) == (128 + signal.SIGTERM, 0)
    closed, ticked = ((tmp_path / name).stat().st_mtime_ns for name in ("first.closed", "second.ticks"))
    assert closed < ticked


def test_closing_the_terminal_after_nohup_leaves_a_stage_that_a_person_started(tmp_path: Path, environment) -> None:
    script = tmp_path / "typed.sh"  # a shell that was not given its command by -c, as one that a person types into
    script.write_text(f'nohup "{sys.executable}" stage.py > out.txt 2>&1 & sleep 60\n')
    (tmp_path / "stage.py").write_text(STAGE.format(name="kept", ticks=25))
    shell = subprocess.Popen(["sh", str(script)], cwd=tmp_path, env=environment)
    wait_until((tmp_path / "kept.ticks").exists)
    shell.kill()
    shell.wait()
    wait_until((tmp_path / "kept.whole").exists)
    assert (tmp_path / "kept.ticks").read_text() == "24"


def test_a_failed_stage_says_what_came_back_and_what_waits_for_room() -> None:
    from gpt2ops.pipeline.cache import Restored
    from gpt2ops.process.stage import _said_of

    lines = list(_said_of(Restored(back=[Path("run.json")], kept=[Path("a.html"), Path("a.pdf")])))
    assert lines == [
        "the earlier run.json are back in place",
        "no room to bring back the earlier a.html, a.pdf, which DVC's cache keeps: free some, then `dvc repro`",
    ]
    assert list(_said_of(Restored())) == []


# Written at each start of Python and at each first import of torch.
SEEN = """
import importlib.abc, os, pathlib, sys
seen = pathlib.Path(__file__).with_name("seen").open("a")
print("start", os.environ.get("MALLOC_MMAP_MAX_"), file=seen, flush=True)
class See(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(name, file=seen, flush=True)
sys.meta_path.insert(0, See())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize("flags", [["-m", "tasks.finetune"], ["-m", "tasks.evaluate"], ["-mtasks.evaluate"]])
def test_a_stage_with_large_tensors_sets_its_allocator_before_it_loads_torch_once(
    flags: list[str], tmp_path: Path, environment
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SEEN)
    path = f"{tmp_path}{os.pathsep}{environment['PYTHONPATH']}"
    plain = {key: value for key, value in environment.items() if not key.startswith("MALLOC_")}
    command = [sys.executable, *flags]
    subprocess.run(command, cwd=tmp_path, env={**plain, "PYTHONPATH": path}, capture_output=True, check=False)
    assert (tmp_path / "seen").read_text().splitlines() == ["start None", "start 0", "torch"]
