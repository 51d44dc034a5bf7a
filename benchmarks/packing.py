"""Training on short examples: packed rows beside padded ones, in trained tokens a second.

    python -m benchmarks.packing [--steps 8]

Examples of 60 tokens on average, rows of 256. One process; each round takes a step of every kind, so a busy machine
slows all alike.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import write_report
from gpt2core.config import GPTConfig
from gpt2core.data.examples.batches import NOT_TRAINED, ExampleBatches
from gpt2core.data.examples.reading import Example
from gpt2core.data.examples.template import TEMPLATES, Turn
from gpt2core.data.examples.writer import write_examples
from gpt2core.data.tokens import TokenSplit, open_split
from gpt2core.model import GPT
from gpt2core.runtime import pick_runtime
from gpt2core.tokenizer import Tokenizer
from gpt2core.training.config import TrainerConfig
from gpt2core.training.spikes import LossMonitor
from gpt2core.training.step import TrainStep

LENGTH, EXAMPLES, MEAN_WORDS = 256, 1000, 29
ROWS = {"padded to 256": 8, "padded to the longest of the batch": 8, "packed": 4}
WARM_UP = 2


def split_of(folder: Path) -> TokenSplit:
    draw = random.Random(0)

    def words(word: str) -> str:
        return f"{word} " * (1 + int(draw.expovariate(1 / MEAN_WORDS)))

    examples = [
        Example((Turn("user", words("why")), Turn("assistant", words("so"))), "made", "") for _ in range(EXAMPLES)
    ]
    shares = {"train": 1.0, "val": 0.0, "test": 0.0}
    write_examples(folder, examples, TEMPLATES["completion"], source="made", shares=shares)
    return open_split(folder, "train")


def batch_of(kind: str, batches: ExampleBatches, number: int) -> tuple[np.ndarray, ...]:
    batch = batches.batch(number)
    if kind != "padded to 256":
        return batch
    room = ((0, 0), (0, LENGTH - batch[0].shape[1]))
    fills = (Tokenizer.eot_id, NOT_TRAINED)
    return tuple(np.pad(array, room, constant_values=fill) for array, fill in zip(batch, fills, strict=True))


def measure(split: TokenSplit, steps: int) -> dict[str, float]:
    """Trained tokens a second of each kind."""
    config, run = TrainerConfig(optimizer="adamw", compile="off"), pick_runtime("cpu", "fp32")
    trainings = {}
    for kind, rows in ROWS.items():
        torch.manual_seed(0)
        model = GPT(GPTConfig.from_preset("small", block_size=LENGTH))
        batches = ExampleBatches(split, batch_size=rows, sequence_length=LENGTH, packing=kind == "packed")
        trainings[kind] = (TrainStep(model, config, run, WARM_UP + steps), batches)
        trainings[kind][0].prepare()
    seconds, tokens = dict.fromkeys(ROWS, 0.0), dict.fromkeys(ROWS, 0)
    for number in range(WARM_UP + steps):
        for kind, (step, batches) in trainings.items():
            batch = batch_of(kind, batches, number)
            started = time.perf_counter()
            step.update(number, batch, LossMonitor(None), lambda: False)
            if number >= WARM_UP:
                seconds[kind] += time.perf_counter() - started
                tokens[kind] += int((batch[1] >= 0).sum())
    return {kind: tokens[kind] / seconds[kind] for kind in ROWS}


def main(steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        split = split_of(Path(folder) / "tokens")
        rates = measure(split, steps)
        mean = len(split) / split.num_documents
    slowest = rates["padded to 256"]
    lines = ["| rows | trained tokens/s | times padded |", "|---|---|---|"]
    lines += [f"| {kind} | {rate:,.0f} | {rate / slowest:.2f} |" for kind, rate in rates.items()]
    lines += ["", f"Preset small, fp32, AdamW; {EXAMPLES:,} examples of {mean:.0f} tokens on average, answers trained."]
    write_report("packing", "Packed examples", lines, f"python -m benchmarks.packing --steps {steps}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, metavar="N")
    main(parser.parse_args().steps)
