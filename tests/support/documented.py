"""Commands of our pages, taken from their fenced blocks, and run as a reader would: in order, in one folder."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS = 300
START_SECONDS = 120
# What a server command listens on unless told; a test gives it a free port.
PORTS = {"mlflow ui": 5000, "mlflow models serve": 5001, "gpt2 app": 7860}


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line in the page."""

    language: str
    line: int
    text: str

    @property
    def commands(self) -> list[str]:
        """Of a shell's block, its commands without comments; one that goes on behind a backslash is one."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [command for line in joined.splitlines() if (command := without_comment(line))]


def without_comment(line: str) -> str:
    """`line` up to a `#` that stands behind a blank and outside quotes."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place].strip()
    return line.strip()


def blocks_of(page: str) -> Iterator[Block]:
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        yield Block(match[1], page[: match.start()].count("\n") + 2, match[2])


class Reader:
    """Someone with a shell in a folder, who does what a page says."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, dict(environment)
        self._exports: list[str] = []
        self._servers: list[subprocess.Popen[bytes]] = []
        self._ports: dict[int, int] = {}

    def run(self, command: str) -> str:
        """Run a command; returns its output. An export holds for what follows, a server stays up until `close`.

        Raises AssertionError, with all it wrote, where it fails.
        """
        name = next((name for name in PORTS if command.startswith(name)), None)
        if name is not None and "--export-space" not in command:
            return self._serve(command, name)
        output = self._output(["bash", "-ec", "\n".join([*self._exports, self._with_ports(command)])], command)
        if command.startswith("export "):
            self._exports.append(command)
        return output

    def run_python(self, code: str) -> str:
        script = "\n".join([*self._exports, 'exec "$0" -c "$1"'])
        return self._output(["bash", "-ec", script, sys.executable, self._with_ports(code)], code)

    def close(self) -> None:
        for process in self._servers:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._servers:
            process.wait(60)

    def _output(self, argv: list[str], shown: str) -> str:
        done = subprocess.run(
            argv, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=COMMAND_SECONDS
        )
        assert done.returncode == 0, f"{shown}\nended with {done.returncode}:\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, f"{shown}\n{done.stderr}"
        return done.stdout

    def _with_ports(self, text: str) -> str:
        """The text with the ports that this test's servers have in the place of the page's."""
        for written, own in self._ports.items():
            text = text.replace(f"127.0.0.1:{written}", f"127.0.0.1:{own}")
        return text

    def _serve(self, command: str, name: str) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._ports[PORTS[name]] = port
        words = shlex.split(command)
        if "-p" in words:
            place = words.index("-p")
            del words[place : place + 2]
        script = "\n".join([*self._exports, 'exec "$0" "$@"'])
        log = self.folder / f"server-{port}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-ec", script, *(os.path.expandvars(word) for word in words), "--port", str(port)],
                cwd=self.folder, env=self.environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._servers.append(process)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                    return ""
            except urllib.error.HTTPError:
                return ""  # it answers; this server has no page there
            except OSError:
                assert process.poll() is None, f"{command}\n{log.read_text()}"
                assert time.monotonic() < deadline, f"{command} does not answer\n{log.read_text()}"
                time.sleep(0.2)
