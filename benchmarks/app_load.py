"""How long visitors of `gpt2 app` wait when many press Generate at once: `python -m benchmarks.app_load`.

Starts the page on a port of its own, sends the prompts, and prints the seconds until each text was there.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/best")
    parser.add_argument("--weights", default="fp32")
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=100)
    arguments = parser.parse_args()
    command = [sys.executable, "-c", "from gpt2ops.cli.main import main; main()", "app", "--port", "0"]
    command += ["--model", arguments.model, "--weights", arguments.weights]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert page.stdout is not None
        address = re.search(r"http://\S+:\d+", page.stdout.readline())
        if address is None:
            sys.exit("the page did not start")
        ask(address[0], arguments.tokens, 0)  # the first loads the model
        alone = ask(address[0], arguments.tokens, 1)
        started = time.perf_counter()
        with ThreadPoolExecutor(arguments.visitors) as visitors:
            waits = sorted(
                visitors.map(lambda seed: ask(address[0], arguments.tokens, seed), range(arguments.visitors))
            )
        elapsed = time.perf_counter() - started
    finally:
        page.terminate()
        page.wait()
    print(f"alone: {alone:.1f} s")
    print(
        f"{len(waits)} at once: first {waits[0]:.1f} s, median {waits[len(waits) // 2]:.1f} s, last {waits[-1]:.1f} s; "
        f"{len(waits) * arguments.tokens / elapsed:,.0f} tokens/s in all"
    )


def ask(address: str, tokens: int, seed: int) -> float:
    """Seconds until the text of one prompt is there."""
    started = time.perf_counter()
    with httpx.Client(base_url=f"{address}/gradio_api/call/generate", timeout=600) as client:
        settings = {"max_new_tokens": tokens, "past_block_size": "slide"}
        data = ["To be, or not to be", "", "sample", settings, seed]
        event = client.post("", json={"data": data}).json()["event_id"]
        answer = client.get(f"/{event}").text
    ((record,),) = json.loads(answer.partition("event: complete\ndata: ")[2])
    if record["tokens"] != tokens and record["finish_reason"] != "eos":
        sys.exit(f"a visitor got {record['tokens']} of {tokens} tokens")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
