"""A stage's output, its reason for failing, and the time it gets to leave."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.engine.child import ChildError, LineSplitter, reason, run_child
from tests.support.waiting import HANGS, wait_until


def lines_of(*chunks: bytes, every_seconds: float = 1000.0) -> list[str]:
    lines: list[str] = []
    splitter = LineSplitter(lines.append, every_seconds)
    for chunk in chunks:
        splitter.feed(chunk)
    splitter.feed(b"", final=True)
    return lines


def test_lines_come_whole_however_the_bytes_arrive() -> None:
    assert lines_of(b"one\r", "\nné".encode()[:3], "né".encode()[2:], b"o\n", b"last") == ["one", "néo", "last"]


def test_a_progress_bar_does_not_flood_the_log() -> None:
    bar = b"".join(b"\rstep %d/1000" % step for step in range(1000))
    assert lines_of(b"before\n", bar, b"\nafter\n") == ["before", "step 0/1000", "step 999/1000", "after"]


def test_the_reason_is_the_stages_own_error_line() -> None:
    report = "ERROR: failed to reproduce 'tokenize': failed to run: python -m tasks.tokenize, exited with 1"
    assert reason(["Running stage", "tokenize: error: a.txt: byte 7 is not valid UTF-8.", report]) == (
        "tokenize: error: a.txt: byte 7 is not valid UTF-8."
    )
    assert reason(["Traceback ...", "ValueError: no", report]) == "ValueError: no"
    assert reason(["Running stage 'tokenize':", "> python -m tasks.tokenize", report]) == report


def test_a_child_that_fails_gives_its_reason(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import sys; print('working'); sys.exit('finetune: error: it went wrong')"
    with pytest.raises(ChildError, match="^finetune: error: it went wrong$"):
        run_child([sys.executable, "-c", code], directory=tmp_path, environment=os.environ, on_line=lines.append)
    assert "working" in lines


def test_a_line_whose_taking_was_cut_short_is_not_given_again() -> None:
    taken: list[str] = []

    def take(line: str) -> None:
        taken.append(line)
        if line == "training":
            raise KeyboardInterrupt

    splitter = LineSplitter(take)
    splitter.feed(b"training")  # text and line end come apart where Python does not buffer
    with pytest.raises(KeyboardInterrupt):
        splitter.feed(b"\nstep 1\nste")
    splitter.feed(b"p 2\n")
    assert taken == ["training", "step 1", "step 2"]


# A stage below a parent that dies at once, as below DVC; the stage saves on SIGTERM and takes a while.
STAGE = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path("checkpoint").write_text("saved"); print("saved", flush=True); sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("training", flush=True)
time.sleep(60)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STAGE!r}])"
FLOW = f"""
import os, pathlib, signal, sys
from flows.engine.child import run_child
class Cancelled(BaseException): pass
def cancel(*_): raise Cancelled
signal.signal(signal.SIGTERM, cancel)
try:
    run_child([sys.executable, "-c", {PARENT!r}], directory=pathlib.Path(sys.argv[1]), environment=os.environ,
              on_line=lambda line: os.write(1, line.encode() + b"\\n"))
except Cancelled:
    print("cancelled", flush=True)
"""


@pytest.mark.parametrize("whole_group", [True, False], ids=["signal-to-the-group", "signal-to-the-flow-alone"])
def test_a_cancel_reaches_the_stage_and_waits_for_its_checkpoint(tmp_path: Path, whole_group: bool) -> None:
    flow = subprocess.Popen(
        [sys.executable, "-c", FLOW, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert flow.stdout is not None
    assert flow.stdout.readline() == "training\n"
    started_at = time.monotonic()
    if whole_group:
        os.killpg(flow.pid, signal.SIGTERM)
    else:
        flow.send_signal(signal.SIGTERM)
    output, _ = flow.communicate(timeout=HANGS)

    assert (tmp_path / "checkpoint").read_text() == "saved"
    assert output.splitlines() == ["saved", "cancelled"]
    assert time.monotonic() - started_at < 50  # the stage itself would sleep for 60 s


WORKING = """
import pathlib, sys, time
from gpt2ops.process.stage import run_stage
def main():
    pathlib.Path("working").touch()
    try:
        time.sleep(60)
    finally:
        pathlib.Path("left").touch()
run_stage("working", main)
"""
DVC = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WORKING!r}])"
FLOW_PROCESS = f"""
import pathlib, sys
from flows.engine.child import run_child
from flows.fine_tune import child_environment
run_child([sys.executable, "-c", {DVC!r}], directory=pathlib.Path(sys.argv[1]), environment=child_environment("id"),
          on_line=print)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_stage_leaves_when_its_flow_was_killed_though_dvc_lives(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    flow = subprocess.Popen([sys.executable, "-c", FLOW_PROCESS, str(tmp_path)], env=environment)
    wait_until((tmp_path / "working").exists, flow)
    flow.kill()
    flow.wait()
    killed_at = time.monotonic()
    wait_until((tmp_path / "left").exists)
    assert time.monotonic() - killed_at < 50, "it slept for its 60 s: the next run would find the folder busy"
