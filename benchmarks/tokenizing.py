"""Tokenizing: bytes a second against tiktoken, memory for a large file, and opening and reading a billion tokens.

python -m benchmarks.tokenizing [--megabytes 200 10000]
Prints the tables and writes them into benchmarks/RESULTS.md. Ten gigabytes of text need 25 GB of disk.
"""

import argparse
import itertools
import json
import random
import resource
import statistics
import string
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import in_a_process, write_report
from gpt2core.data.batches import Batches
from gpt2core.data.corpus import read_corpus
from gpt2core.data.tokens import MANIFEST, TOKEN_DTYPE, open_tokens
from gpt2core.data.writer import write_tokens
from gpt2core.kernels.cores import usable_cores
from gpt2core.storage.files import write_json
from gpt2core.tokenizer import Tokenizer
from gpt2ops.pipeline import paths

COMMAND_SECONDS = 900
SHARDS, SHARD = 10, 100_000_000
SMALL_MEGABYTES = 1000  # to here with one worker as well
COMPARED_FRAGMENTS = 100  # of the text, some 20 MB, by tiktoken alone


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


def whole_stage(job: dict[str, Any]) -> dict[str, Any]:
    """Reading, encoding, splitting and writing: seconds and tokens."""
    text = Path(job["text"])
    Tokenizer().encode("What is loaded once is loaded before the clock starts.")
    with tempfile.TemporaryDirectory(dir=text.parent) as folder:
        before = time.perf_counter()
        manifest = write_tokens(
            Path(folder) / "tokens",
            read_corpus([text], text_field="text"),
            source="benchmark",
            shares={"train": 0.8, "val": 0.1, "test": 0.1},
            workers=job["workers"],
        )
        return {"seconds": time.perf_counter() - before, "tokens": manifest["tokens"]}


def against_tiktoken(job: dict[str, Any]) -> dict[str, Any]:
    """Encoding alone, one thread: bytes a second of both, and whether all ids are the same."""
    tokenizer = Tokenizer()
    for load in (tokenizer.encode, tokenizer.encode_by_tiktoken):
        load("What is loaded once is loaded before the clock starts.")
    fragments = list(itertools.islice(read_corpus([Path(job["text"])]), COMPARED_FRAGMENTS))
    seconds = {}
    ids = {}
    for name, encode in (("ours", tokenizer.encode_array), ("tiktoken", tokenizer.encode_by_tiktoken)):
        before = time.perf_counter()
        ids[name] = [encode(fragment) for fragment in fragments]
        seconds[name] = time.perf_counter() - before
    same = all(np.array_equal(a, b) for a, b in zip(ids["ours"], ids["tiktoken"], strict=True))
    size = sum(len(fragment.encode()) for fragment in fragments)
    return {"same": same, **{name: size / value for name, value in seconds.items()}}


def billion_tokens(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds to open a billion tokens, and to read a batch near the start, in the middle and near the end."""
    with tempfile.TemporaryDirectory(dir=Path(job["text"]).parent) as name:
        folder = Path(name) / "tokens"
        write_token_set(folder)
        before = time.perf_counter()
        split = open_tokens(folder).split("train")
        opened = time.perf_counter() - before
        before = time.perf_counter()
        batches = Batches(split, batch_size=4, sequence_length=1024, sampler="sequential")
        batches.batch(0)
        first = time.perf_counter() - before
        last, reads = batches.windows_per_epoch // batches.batch_size - 1, {}
        for place, around in (("start", 1), ("middle", last // 2), ("end", last - 500)):
            times = []
            for index in range(around, around + 500):
                before = time.perf_counter()
                batches.batch(index)
                times.append(time.perf_counter() - before)
            reads[place] = statistics.median(times)
        return {"opened": opened, "first": first, **reads, "tokens": len(split)}


def write_token_set(folder: Path) -> None:
    """A set of a short text whose training split is then made longer; the hashes, which opening does not read, stay."""
    write_tokens(folder, ["A short text.<|endoftext|>"], source="benchmark", shares={"train": 1, "val": 0, "test": 0})
    manifest = json.loads((folder / MANIFEST).read_text())
    train = manifest["splits"]["train"]
    content = np.random.default_rng(0).integers(0, 50256, SHARD).astype(TOKEN_DTYPE).tobytes()
    train["shards"] = [{**train["shards"][0], "file": f"train-{i:05d}.bin", "tokens": SHARD} for i in range(SHARDS)]
    for shard in train["shards"]:
        (folder / shard["file"]).write_bytes(content)
    train["tokens"] = manifest["tokens"] = SHARDS * SHARD
    write_json(folder / MANIFEST, manifest)


MEASUREMENTS = {"stage": whole_stage, "encoding": against_tiktoken, "billion": billion_tokens}


def measure(**job: Any) -> dict[str, Any]:
    found = in_a_process(
        [sys.executable, "-m", "benchmarks.tokenizing", "--child", json.dumps(job)], {}, COMMAND_SECONDS
    )
    if "failed" in found:
        sys.exit(f"{job}: {found['failed']}")
    return found


def child(job: dict[str, Any]) -> dict[str, Any]:
    found = MEASUREMENTS[job["what"]](job)
    unit = 1 if sys.platform == "darwin" else 1024
    return {**found, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--megabytes", type=int, nargs="*", default=[200, 10_000])
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(json.loads(arguments.child))))
        return
    cores = usable_cores()
    lines = ["| text | workers | seconds | MB/s | tokens/s | peak memory |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        for megabytes in arguments.megabytes:
            write_text(text, megabytes)
            size = text.stat().st_size
            for workers in (1, cores) if megabytes <= SMALL_MEGABYTES else (cores,):
                stage = measure(what="stage", text=str(text), workers=workers)
                seconds = stage["seconds"]
                lines.append(
                    f"| {size / 1e6:,.0f} MB | {workers} | {seconds:.1f} | {size / seconds / 1e6:.0f} | "
                    f"{stage['tokens'] / seconds / 1e6:.1f} M | {stage['memory'] / 1e6:.0f} MB |"
                )
        encoding = measure(what="encoding", text=str(text))
        billion = measure(what="billion", text=str(text))
    faster = encoding["ours"] / encoding["tiktoken"]
    lines += [
        "",
        f"Encoding alone, one thread: {encoding['ours'] / 1e6:.0f} MB/s, {faster:.0f} times tiktoken's; "
        f"{'all ids are' if encoding['same'] else 'NOT all ids are'} the same.",
        "",
        f"{billion['tokens']:,} tokens: opened in {billion['opened'] * 1000:.1f} ms, first batch after another "
        f"{billion['first'] * 1000:.1f} ms; a batch of 4 x 1,024 takes {billion['start'] * 1e6:.0f} us near the start, "
        f"{billion['middle'] * 1e6:.0f} in the middle, {billion['end'] * 1e6:.0f} near the end.",
    ]
    command = f"python -m benchmarks.tokenizing --megabytes {' '.join(map(str, arguments.megabytes))}"
    write_report("tokenizing", "Tokenizing: read, encode, split and write", lines, command)


if __name__ == "__main__":
    main()
