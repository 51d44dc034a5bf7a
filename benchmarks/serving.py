"""Load on a real `mlflow models serve`: requests a second and latency for 1, 5 and 20 clients.

python -m benchmarks.serving [--model DIR] [--name NAME] [--new 64] [--seconds 15] [--workers 1]
Prints a table and writes it into benchmarks/RESULTS.md, under the name, in the place of an older one.
MLflow's server does not stream: "first token" is the time to an answer of one token.
"""

import argparse
import json
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
CLIENTS = (1, 5, 20)
PROMPT = "Client {client} asks for text {number}:"
COLUMNS = "| clients | new tokens | requests | requests/s | tokens/s | p50 | p95 |\n|---|---|---|---|---|---|---|\n"


@contextmanager
def served(model: str, workers: int) -> Iterator[int]:
    """The port of a server for a directory in the Hugging Face layout, as a run registers it."""
    import mlflow.pyfunc

    import gpt2core
    from gpt2ops.registry import text_model

    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(
                f"{folder}/model",
                python_model=text_model.__file__,
                artifacts={"model": str(Path(model).resolve())},
                code_paths=[str(Path(gpt2core.__file__).parent)],
                signature=text_model.signature(),
                pip_requirements=["mlflow"],
            )
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        environment.pop("OMP_NUM_THREADS", None)
        command = ["mlflow", "models", "serve", "-m", f"{folder}/model", "--env-manager", "local", "-p", str(port)]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--workers", str(workers)],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            while not answers(port):
                if process.poll() is not None:
                    sys.exit(Path(folder, "log").read_text())
                time.sleep(0.2)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
    except OSError:
        return False
    return True


def ask(port: int, prompt: str, new: int, seed: int) -> float:
    """Seconds of a request for exactly `new` drawn tokens."""
    body = {"prompt": prompt, "max_new_tokens": new, "min_new_tokens": new, "seed": seed}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=300) as response:
        texts = json.load(response)
    assert len(texts) == 1, texts
    return time.perf_counter() - started


def load(port: int, clients: int, new: int, seconds: float) -> str:
    """A row of the table: each client asks again as soon as it has its answer, until the time is up."""
    times: list[float] = []
    started = time.perf_counter()

    def client(number: int) -> None:
        count = 0
        while count == 0 or time.perf_counter() - started < seconds:
            times.append(ask(port, PROMPT.format(client=number, number=count), new, 1000 * number + count))
            count += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    times.sort()
    p50, p95 = times[len(times) // 2], times[int(0.95 * len(times))]
    rate = len(times) / elapsed
    return f"| {clients} | {new} | {len(times)} | {rate:.2f} | {rate * new:.0f} | {p50:.2f} s | {p95:.2f} s |\n"


def heading(arguments: argparse.Namespace) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout
    chip = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return (
        f"**{arguments.name}.** `{shlex.join(['python', '-m', 'benchmarks.serving', *sys.argv[1:]])}` "
        f"({datetime.now(UTC):%Y-%m-%d}, commit {commit.strip()}, {chip}, {os.cpu_count()} cores)\n\n"
    )


def write(name: str, text: str) -> None:
    """Put the table into RESULTS.md, where an older one of this name is replaced."""
    start, end = f"<!-- serving {name} -->\n", f"<!-- serving {name}: end -->\n"
    page = RESULTS.read_text(encoding="utf-8")
    if start in page:
        before, _, rest = page.partition(start)
        page = before + start + text + end + rest.partition(end)[2]
    else:
        page = f"{page.rstrip()}\n\n{start}{text}{end}"
    RESULTS.write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/best")
    parser.add_argument("--name", default="the default model")
    parser.add_argument("--new", type=int, default=64, help="new tokens a request")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each number of clients")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with served(arguments.model, arguments.workers) as port:
        for number in range(2 * arguments.workers):
            ask(port, "warm up", arguments.new, number)
        rows = [load(port, clients, new, arguments.seconds) for new in (1, arguments.new) for clients in CLIENTS]
    text = heading(arguments) + COLUMNS + "".join(rows)
    print(text)
    write(arguments.name, text)


if __name__ == "__main__":
    main()
