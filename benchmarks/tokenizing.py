"""Tokenizing a large text with all cores against one, and the memory that it takes.

python -m benchmarks.tokenizing [--megabytes 200]
"""

import argparse
import multiprocessing
import os
import random
import resource
import string
import sys
import tempfile
import time
from pathlib import Path

from gpt2core.corpus import read_corpus
from gpt2core.token_writer import write_tokens
from gpt2core.tokenizer import Tokenizer
from tasks import paths


def write_text(path: Path, megabytes: int) -> None:
    """The bundled plays over and over, one document after another; every 50th word is one never seen before.

    Words that come again cost an encoder with a cache next to nothing, so that plain repetition would flatter it.
    """
    words = paths.BUNDLED_CORPUS.read_text(encoding="utf-8").split(" ")
    made_up = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1_000_000:
            for place in range(0, len(words), 50):
                words[place] = "".join(made_up.choices(string.ascii_lowercase, k=made_up.randint(3, 12)))
            file.write(f"{' '.join(words)}\n<|endoftext|>\n")


def measure(text: Path, workers: int, results: "multiprocessing.SimpleQueue[tuple[float, int, int]]") -> None:
    """Seconds, tokens and peak memory (bytes) of a process of its own."""
    Tokenizer().encode("The merge table is read before the clock starts.")
    with tempfile.TemporaryDirectory(dir=text.parent) as folder:
        before = time.perf_counter()
        manifest = write_tokens(
            Path(folder) / "tokens",
            read_corpus([text], text_field="text"),
            source="benchmark",
            shares={"train": 0.8, "val": 0.1, "test": 0.1},
            workers=workers,
        )
        seconds = time.perf_counter() - before
    unit = 1 if sys.platform == "darwin" else 1024
    results.put((seconds, manifest["tokens"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        write_text(text, arguments.megabytes)
        print(f"{text.stat().st_size / 1e6:.0f} MB of text")
        alone = 0.0
        for workers in (1, cores):
            results = context.SimpleQueue()
            process = context.Process(target=measure, args=(text, workers, results))
            process.start()
            process.join()
            seconds, tokens, memory = results.get()
            alone = alone or seconds
            print(
                f"{workers} worker(s): {seconds:.1f} s, {tokens / seconds / 1e6:.2f} M tokens/s, "
                f"{alone / seconds:.2f} times one worker, {memory / 1e6:.0f} MB of memory"
            )


if __name__ == "__main__":
    main()
