"""A stage's process: its output line by line, its reason where it fails, and time to leave where it is stopped."""

import codecs
import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

# Prefect's worker kills what is left 30 s after its SIGTERM.
LEAVE_SECONDS = 28.0
_PROGRESS_SECONDS = 3.0
_LINE_END = re.compile(r"\r\n|\n|\r")


class ChildError(Exception):
    """The child ended with an error; the text is the line that says why."""


class LineSplitter:
    """Bytes in, whole lines out; of lines that end in a carriage return (progress bars) one every `every_seconds`."""

    def __init__(self, on_line: Callable[[str], None], every_seconds: float = _PROGRESS_SECONDS) -> None:
        self._on_line = on_line
        self._every_seconds = every_seconds
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""
        self._last_progress = -every_seconds

    def feed(self, data: bytes, *, final: bool = False) -> None:
        text = self._rest + self._decoder.decode(data, final)
        # A carriage return at the very end may be the first half of a Windows line end.
        limit = len(text) if final or not text.endswith("\r") else len(text) - 1
        start = 0
        for end in _LINE_END.finditer(text, 0, limit):
            line, start = text[start : end.start()], end.end()
            # First, for a cancel may arrive while the line is given: then it would be given once more.
            self._rest = text[start:]
            self._give(line, progress=end.group() == "\r")
        self._rest = text[start:]
        if final and self._rest:
            self._give(self._rest, progress=False)
            self._rest = ""

    def _give(self, line: str, *, progress: bool) -> None:
        if not line.strip():
            return
        if progress:
            now = time.monotonic()
            if now - self._last_progress < self._every_seconds:
                return
            self._last_progress = now
        self._on_line(line.rstrip())


def run_child(
    command: Sequence[str], *, directory: Path, environment: Mapping[str, str], on_line: Callable[[str], None]
) -> None:
    """Run `command` to its end, each line of its output to `on_line`. Raises ChildError with the reason.

    On an exception from outside (a cancel, Ctrl-C) the child and all it started get SIGTERM, unless they had it with
    us, and up to LEAVE_SECONDS: training saves a checkpoint then.
    """
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        on_line(line)

    # In our own process group, so that a signal to the group reaches the training too.
    process = subprocess.Popen(
        command, cwd=directory, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, chunks), daemon=True).start()
    splitter = LineSplitter(take)
    try:
        while data := chunks.get():
            splitter.feed(data)
        splitter.feed(b"", final=True)
        returncode = process.wait()
    except BaseException as stop:
        _let_leave(process, chunks, splitter, forward=not isinstance(stop, KeyboardInterrupt))
        raise
    if returncode:
        raise ChildError(reason(lines) or f"{' '.join(command)} ended with exit code {returncode}")


def reason(lines: Sequence[str]) -> str | None:
    """The line that says why a stage failed: its own `error:` line, else what stands before DVC's report."""
    own = [line for line in lines if re.match(r"\w+: error: ", line)]
    if own:
        return own[-1]
    dvc = [index for index, line in enumerate(lines) if line.startswith("ERROR: ")]
    if not dvc:
        return lines[-1] if lines else None
    before = lines[dvc[0] - 1] if dvc[0] else ""
    # An exception's last line stands right before; after DVC's "Running stage" and "> command" nothing was said.
    return before if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", before) else lines[dvc[0]]


def _read(pipe: IO[bytes], chunks: "queue.SimpleQueue[bytes]") -> None:
    """Pipe to queue, an empty chunk at the end, which comes when the last process that holds the pipe has left."""
    while data := os.read(pipe.fileno(), 65536):
        chunks.put(data)
    chunks.put(b"")


def _let_leave(
    process: "subprocess.Popen[bytes]", chunks: "queue.SimpleQueue[bytes]", splitter: LineSplitter, *, forward: bool
) -> None:
    family = _family(process.pid)
    deadline = time.monotonic() + LEAVE_SECONDS
    forward_at = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        try:
            data = chunks.get(timeout=0.2)
        except queue.Empty:
            # DVC does not outlive a signal to the whole group: if it is still there, the signal was for us alone.
            if forward and time.monotonic() > forward_at:
                forward = False
                if process.poll() is None:
                    _each(family, psutil.Process.terminate)
            continue
        if not data:
            splitter.feed(b"", final=True)
            process.wait()
            return
        splitter.feed(data)
    _each(family, psutil.Process.kill)


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _each(processes: Sequence[psutil.Process], action: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            action(process)
        except psutil.NoSuchProcess:
            continue
