"""The best validation loss in five minutes of training: the small model, the bundled plays, against the Trainer.

python -m benchmarks.validation_race [--seconds 300]
Each side plans its schedule to end with the time, of which evaluations take nothing. The Trainer, in bf16 with its own
batch size, schedule and optimizer, has five learning rates; ours are settings of params.yaml, one after another.
`--ours '{"train.batch_size": 8}'` tries other settings, and max_steps of `train.stop` less than all the time.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import HERE, in_a_process, machine, origin_lines, write_section

ROWS = HERE / "validation_race.json"
START, END = "<!-- validation race: written by benchmarks.validation_race -->", "<!-- validation race: end -->"
LEARNING_RATES = (5e-5, 2e-4, 5e-4, 1e-3, 3e-3)
EVALUATIONS = 10
PROBE_STEPS = 25
SEQUENCE_LENGTH = 128
TRAINER_BATCH = 8


class Race:
    """A side's clock: steps counted, evaluations not."""

    def __init__(self, model: Any, val: Any, total_steps: int, batch_size: int) -> None:
        self.model, self.val, self.total_steps = model, val, total_steps
        self.tokens_a_step = batch_size * SEQUENCE_LENGTH
        self.losses: list[tuple[int, float]] = []
        self.step_seconds: list[float] = []
        self._since = time.perf_counter()

    def step_done(self, step: int) -> None:
        self.step_seconds.append(time.perf_counter() - self._since)
        every = max(1, self.total_steps // EVALUATIONS)
        if self.total_steps > PROBE_STEPS and (step % every == 0 or step == self.total_steps):
            self.losses.append((step, validation_loss(self.model, self.val)))
        self._since = time.perf_counter()

    def result(self) -> dict[str, Any]:
        step, best = min(self.losses, key=lambda pair: pair[1])
        return {
            "best": best,
            "best_step": step,
            "steps": len(self.step_seconds),
            "tokens": len(self.step_seconds) * self.tokens_a_step,
            "seconds": sum(self.step_seconds),
            "losses": self.losses,
        }


def validation_loss(model: Any, val: Any) -> float:
    """Over the whole split, window after window."""
    import torch

    from gpt2core.evaluation.scores import evaluate
    from gpt2core.model import GPT

    model.eval()
    scored = model if isinstance(model, GPT) else lambda token_ids: model(token_ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        score = evaluate(scored, val, block_size=SEQUENCE_LENGTH, stride=SEQUENCE_LENGTH)
    model.train()
    assert score is not None
    return score.loss


def steps_that_fit(seconds: float, probe: Callable[[int], "Race"]) -> int:
    return int(seconds / statistics.median(probe(PROBE_STEPS).step_seconds[5:]))


def ours(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.trained import batches_of, params_of, trainer_of
    from gpt2core.data.tokens import open_tokens
    from gpt2core.runtime import pick_runtime, set_threads
    from gpt2core.training.events import TrainerEvents
    from gpt2core.training.trainer import Trainer
    from gpt2ops.process.startup import keep_freed_memory

    keep_freed_memory()
    set_threads(None)
    tokens = open_tokens(job["tokens"])
    train, val = tokens.split("train"), tokens.split("val")
    run = pick_runtime("auto", "auto")
    never = dict.fromkeys(("train.log_interval", "train.eval_interval", "train.checkpoint_interval"), 10**7)
    fixed = {**never, "train.sequence_length": SEQUENCE_LENGTH, "train.eval_batches": 1, "train.sample_tokens": 0}

    def race(steps: int) -> Race:
        params = params_of({**fixed, **job["settings"], "train.stop": {"max_steps": steps, "target_loss": None}})
        batches = batches_of(params, train)

        class Clock(TrainerEvents):
            def on_start(self, trainer: Trainer) -> None:
                self.race = Race(trainer.model, val, steps, batches.batch_size)

            def on_step(self, trainer: Trainer, train_loss: float) -> None:
                self.race.step_done(trainer.step)

        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            trainer_of(params, batches, folder, run, (clock,)).fit()
        return clock.race

    fitting = steps_that_fit(job["seconds"], race)
    return race(min(fitting, job["settings"].get("train.stop", {}).get("max_steps", fitting))).result()


def trainer(job: dict[str, Any]) -> dict[str, Any]:
    """`transformers.Trainer` with its defaults but for bf16 and the learning rate."""
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from benchmarks.training import hugging_face_model
    from gpt2core.data.tokens import open_tokens

    tokens = open_tokens(job["tokens"])
    train, val = tokens.split("train"), tokens.split("val")

    class Windows(Dataset):  # type: ignore[type-arg]
        """As `run_clm` groups texts: windows one after the other."""

        def __len__(self) -> int:
            return len(train) // SEQUENCE_LENGTH

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            row = train.read(index * SEQUENCE_LENGTH, (index + 1) * SEQUENCE_LENGTH).tolist()
            return {"input_ids": row, "labels": row}

    def race(steps: int) -> Race:
        model = hugging_face_model({"preset": "small"})
        clock = Race(model, val, steps, TRAINER_BATCH)

        class Clock(TrainerCallback):
            def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
                clock.step_done(state.global_step)

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=TRAINER_BATCH, max_steps=steps, save_strategy="no", bf16=True,
                learning_rate=job["learning_rate"], report_to="none", disable_tqdm=True, use_cpu=True,
                logging_strategy="no",
            )  # fmt: skip
            Trainer(model=model, args=arguments, train_dataset=Windows(), callbacks=[Clock()]).train()
        return clock

    return race(steps_that_fit(job["seconds"], race)).result()


def tokenized(folder: Path) -> Path:
    """The bundled plays, split as the default run splits them."""
    from gpt2core.data.corpus import read_corpus
    from gpt2core.data.writer import write_tokens
    from gpt2ops.pipeline import paths

    write_tokens(
        folder / "tokens",
        read_corpus([paths.BUNDLED_CORPUS]),
        source="bundled",
        shares={"train": 0.8, "val": 0.1, "test": 0.1},
    )
    return folder / "tokens"


def measure(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.validation_race", "--child", json.dumps(job)]
    return in_a_process(command, {"TOKENIZERS_PARALLELISM": "false"}, 3 * job["seconds"] + 300)


def table(rows: dict[str, Any]) -> list[str]:
    lines = ["| side | best validation loss | at step | steps | tokens | seconds |", "|---|---|---|---|---|---|"]
    for name, row in sorted(rows.items(), key=lambda item: item[1]["best"]):
        bold = "**" if name.startswith("ours") else ""
        lines.append(
            f"| {bold}{name}{bold} | {row['best']:.3f} | {row['best_step']:,} | {row['steps']:,} | {row['tokens']:,} | "
            f"{row['seconds']:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--ours", nargs="*", default=["{}"], metavar="JSON", help="settings to try, by dotted key")
    parser.add_argument("--learning-rates", nargs="*", type=float, default=list(LEARNING_RATES), help="the Trainer's")
    arguments = parser.parse_args()
    if arguments.child:
        job = json.loads(arguments.child)
        print(json.dumps(trainer(job) if "learning_rate" in job else ours(job)))
        return
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        base = {"tokens": str(tokenized(Path(folder))), "seconds": arguments.seconds}
        jobs = {f"ours, {text}" if text != "{}" else "ours": {"settings": json.loads(text)} for text in arguments.ours}
        for rate in arguments.learning_rates:
            jobs[f"Trainer, learning rate {rate:g}"] = {"learning_rate": rate}
        for name, job in jobs.items():
            found = measure({**base, **job})
            if "failed" in found:
                sys.exit(f"{name}: {found['failed']}")
            rows[name] = {**found, **machine(), "command": "python -m benchmarks.validation_race"}
            print(*table({name: rows[name]})[2:], sep="\n", flush=True)
            ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    title = f"## Best validation loss in {arguments.seconds / 60:g} minutes of training: small model, bundled plays"
    write_section(START, END, "\n".join([START, "", title, "", *table(rows), *origin_lines(rows), "", END]))


if __name__ == "__main__":
    main()
