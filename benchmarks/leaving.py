"""How long a training takes to leave when asked to, and what its checkpoints cost, at 124M by default.

python -m benchmarks.leaving [--preset gpt2] [--repeats 5] [--batch-size 16] [--sequence-length 128]
"""

import argparse
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2core.storage.files import read_json
from tests.support.small_project import ROOT, TINY, Project, copy_sources

CORPUS = "data/corpus/shakespeare-plays.txt"
WITHIN = 10.0  # seconds: the promise for 124M
EVERY = 250  # steps between two checkpoints, the default


def project(folder: Path, arguments: argparse.Namespace) -> Project:
    copy_sources(folder)
    shutil.copy(ROOT / CORPUS, folder / CORPUS)
    train: dict[str, Any] = {
        **TINY["train"],
        "batch_size": arguments.batch_size,
        "sequence_length": arguments.sequence_length,
        "micro_batch_size": arguments.micro_batch_size,
        "eval_interval": 1_000_000,
        "checkpoint_interval": 3,
        "stop": {"max_steps": 1_000_000, "target_loss": None},
    }
    return Project(
        folder,
        {
            **TINY,
            "run": {},
            "data": {"source": "bundled"},
            "model": {"preset": arguments.preset},
            "train": train,
        },
    )


def steps(lines: Iterator[str]) -> Iterator[tuple[int, float]]:
    """Each step as it is logged, with the time."""
    for line in lines:
        if found := re.match(r"step +(\d+)", line):
            yield int(found[1]), time.perf_counter()


def leave(place: Project, chance: random.Random) -> tuple[float, int]:
    """Seconds from SIGTERM, at any moment of a step, to the end of the process; the checkpoint's step."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tasks.finetune"], cwd=place.root, env=place.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    seen = steps(iter(process.stdout.readline, ""))
    next(seen)
    _, earlier = next(seen)
    step, now = next(seen)
    time.sleep(chance.random() * (now - earlier))
    asked_at = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    for _ in process.stdout:
        pass
    process.wait()
    seconds = time.perf_counter() - asked_at
    newest = max((place.root / "models/checkpoints").rglob("manifest.json"), key=lambda path: path.stat().st_mtime)
    saved = int(read_json(newest)["step"])
    assert saved >= step, f"the checkpoint is of step {saved}, but step {step} was done"
    return seconds, saved


def saving(place: Project) -> tuple[float, float]:
    """Medians in seconds: a save, and a step, of a run without a pause."""
    from gpt2core.model import GPT
    from gpt2core.training import checkpoint
    from gpt2core.training import optimizers as optim

    newest = max((place.root / "models/checkpoints").rglob("manifest.json"), key=lambda path: path.stat().st_mtime)
    found = checkpoint.load_checkpoint(newest.parent)
    model = GPT.from_pretrained(newest.parent)
    optimizers = optim.build_optimizers(
        model, name="adamw", learning_rate=1e-4, muon_learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.1
    )
    optim.load_optimizer_tensors(optimizers, model, found.optimizer)
    times = []
    for repeat in range(5):
        started_at = time.perf_counter()
        checkpoint.save_checkpoint(
            place.root / f"step-{repeat:08d}", model, optim.optimizer_tensors(optimizers, model), found.state
        )
        times.append(time.perf_counter() - started_at)
    rows = [row["tokens_per_second"] for row in found.state["history"] if row["tokens_per_second"]]
    return statistics.median(times), statistics.median(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="gpt2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int, default=None)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        place = project(Path(folder), arguments)
        for stage in ("download", "tokenize"):
            place.run(sys.executable, "-m", f"tasks.{stage}")
        times = []
        for repeat in range(arguments.repeats):
            seconds, step = leave(place, chance)
            times.append(seconds)
            print(f"{repeat + 1}: {seconds:.1f} s from SIGTERM to the end, checkpoint at step {step}", flush=True)
        save, tokens_per_second = saving(place)
    step_seconds = arguments.batch_size * arguments.sequence_length / tokens_per_second
    print(
        f"{arguments.preset}, {arguments.batch_size} x {arguments.sequence_length} tokens in {step_seconds:.2f} s: "
        f"left in {statistics.median(times):.1f} s (most {max(times):.1f}, promised {WITHIN:.0f}); "
        f"a save takes {save:.2f} s, {100 * save / (EVERY * step_seconds + save):.2f} % with one in {EVERY} steps"
    )


if __name__ == "__main__":
    main()
