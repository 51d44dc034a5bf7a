"""Every figure of one GPU in one command, each measured in a process of its own, against `transformers`.

python -m benchmarks.gpu [--rows NAME ...] [--text FILE] [--seconds 540] [--dry]
Rows that no longer fit into `--seconds` are left out and named. `--dry` runs the same code with tiny models on a CPU,
and writes nothing. The table goes to benchmarks/RESULTS.md.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.results import HERE, in_a_process, machine, origin_lines, write_section

ROWS_FILE = HERE / "gpu.json"
START, END = "<!-- gpu: written by benchmarks.gpu -->", "<!-- gpu: end -->"
PLAYS = HERE.parent / "data/corpus/shakespeare-plays.txt"
Job = dict[str, Any]
Found = dict[str, Any]


def changes_of(job: Job) -> dict[str, Any]:
    """No dropout, for any side; in a dry run a model of the same shape that a CPU trains in no time."""
    tiny = {"vocab_size": 300, "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 64}
    return {"drop_rate": 0.0, **(tiny if job["dry"] else {})}


def sizes(job: Job, preset: str = "gpt2") -> Any:
    from gpt2core.config import GPTConfig

    return GPTConfig.from_preset(preset, **changes_of(job))


def peer_job(job: Job, **values: Any) -> Job:
    """As `benchmarks.training` takes it."""
    return {"preset": "gpt2", "changes": changes_of(job), **values}


def trained_model(job: Job, preset: str = "gpt2") -> Any:
    import torch

    from gpt2core.model import GPT

    torch.manual_seed(0)
    with torch.device(job["device"]):
        return GPT(sizes(job, preset))


def random_batches(job: Job, batch: int, length: int) -> list[Any]:
    import numpy as np

    rng, words = np.random.default_rng(0), sizes(job).vocab_size
    return [tuple(rng.integers(0, words, (batch, length), dtype=np.int64) for _ in range(2)) for _ in range(4)]


def timed_steps(job: Job, model: Any, batch: int, length: int, steps: int, **settings: Any) -> Found:
    """Steps of `gpt2core` as a run takes them: seconds (median), peak memory, seconds until the third step is done."""
    import torch

    from gpt2core.runtime import pick_runtime
    from gpt2core.training.config import TrainerConfig
    from gpt2core.training.graphed_step import make_train_step
    from gpt2core.training.spikes import LossMonitor

    run, monitor = pick_runtime(job["device"], "bf16"), LossMonitor(None)
    config = TrainerConfig(**{"optimizer": "adamw", "target_loss": None, "max_steps": 1000, **settings})
    step = make_train_step(model, config, run, 1000, batch * length)
    step.prepare()
    batches, ends = random_batches(job, batch, length), [time.perf_counter()]
    for index in range(3 + steps):
        step.update(index, batches[index % 4], monitor, lambda: False)
        ends.append(time.perf_counter())
    seconds = statistics.median(b - a for a, b in pairwise(ends[3:]))
    peak = torch.cuda.max_memory_allocated() if job["device"] == "cuda" else 0
    return {"seconds": seconds, "first": ends[3] - ends[0], "peak": peak, "tokens": batch * length}


def train_ours(job: Job, batch: int, length: int, steps: int) -> Found:
    batch, length, steps = (2, 32, 2) if job["dry"] else (batch, length, steps)
    compiled = "off" if job["dry"] else "on"
    return timed_steps(job, trained_model(job), batch, length, steps, compile=compiled)


def train_peer(job: Job, batch: int, length: int, steps: int, side: str) -> Found:
    """`transformers.Trainer`, as benchmarks.training has it."""
    from benchmarks.training import child

    if job["dry"]:
        batch, length, steps = 2, 32, 2
    found = child(peer_job(job, side=side, batch=batch, length=length, steps=steps))
    return {"seconds": found["seconds"], "peak": found["peak"], "tokens": batch * length}


def memorise(job: Job) -> Found:
    """Seconds of training until a full pass over the text is under the target, its own full passes included."""
    from benchmarks.memorise import SETTINGS, train
    from gpt2core.data.corpus import read_corpus
    from gpt2core.data.writer import write_tokens

    settings = {**SETTINGS, "train.batch_size": 32}
    if job["dry"]:
        settings |= {"model.preset": "small", "train.batch_size": 4}
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens"
        write_tokens(
            tokens,
            read_corpus([Path(job["text"])]),
            source=Path(job["text"]).name,
            shares={"train": 1.0, "val": 0.0, "test": 0.0},
            split_by="tokens",
            max_tokens=2_000 if job["dry"] else 338_025,
        )
        asked = {"tokens": str(tokens), "settings": settings, "target": 0.0999, "minutes": 3, "epochs": 8}
        found = train(asked)
    return {
        "seconds": 60 * found["minutes"],
        "loss": found["loss"],
        "epochs": found["epochs"],
        "tokens": found["length"],
    }


SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}


def decode(job: Job, batch: int, side: str, options: dict[str, Any], new: int = 960) -> Found:
    """Tokens a second of all rows: 16 tokens of prompt, `new` new ones, guesses by repetition off."""
    import torch

    prompt, new = 16, 8 if job["dry"] else new
    dtype = torch.float32 if job["dry"] else torch.bfloat16
    ids = torch.randint(0, 300, (batch, prompt), generator=torch.Generator().manual_seed(0)).to(job["device"])
    if side == "ours":
        from gpt2core.decoding import generate
        from gpt2core.decoding.strategies import drafting

        drafting.MIN_NEW_TOKENS = sys.maxsize
        model = trained_model(job).eval().to(dtype)

        def run() -> None:
            generate(model, ids, max_new_tokens=new, eos_token_id=None, pad_token_id=0, **options)
    else:
        from benchmarks.training import hugging_face_model

        peer = hugging_face_model(peer_job(job)).eval().to(job["device"], dtype)
        peer.generation_config.eos_token_id, peer.generation_config.pad_token_id = None, 0

        def run() -> None:
            peer.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **{"do_sample": False, **options}
            )

    times = []
    for _ in range(4):
        wait(job)
        started = time.perf_counter()
        run()
        wait(job)
        times.append(time.perf_counter() - started)
    return {"tokens a second": batch * new / statistics.median(times[1:]), "first call": times[0]}


def wait(job: Job) -> None:
    import torch

    if job["device"] == "cuda":
        torch.cuda.synchronize()


def in_memory(job: Job, preset: str, limit: float, **settings: Any) -> Found:
    """Steps of 4 x 1,024 tokens with at most `limit` bytes; fails where they do not suffice."""
    import torch

    if job["device"] == "cuda":
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    batch, length = (2, 32) if job["dry"] else (4, 1024)
    model = trained_model(job, preset)
    return timed_steps(
        job, model, batch, length, 3, gradient_checkpointing=True, micro_batch_size=1, compile="off", **settings
    )


def saving(job: Job) -> Found:
    """How much longer a step is that saves, in seconds; and whether an interrupted run ends in the same bits."""
    import torch

    whole, gaps = run_of_steps(job, None)
    resumed, _ = run_of_steps(job, 37)
    usual = statistics.median(gaps)
    return {
        "stall": max(gaps[19], gaps[39]) - usual,
        "step": usual,
        "equal": all(torch.equal(whole[name], resumed[name]) for name in whole),
    }


def run_of_steps(job: Job, cut: int | None) -> tuple[dict[str, Any], list[float]]:
    """The weights after 60 steps, saved at 20 and 40, and the seconds between steps; `cut`: interrupted and resumed."""
    from benchmarks.training import Split, text_of
    from gpt2core.runtime import pick_runtime
    from gpt2core.training.config import TrainerConfig
    from gpt2core.training.events import TrainerEvents
    from gpt2core.training.trainer import Trainer

    rows, length = (2, 16) if job["dry"] else (16, 1024)
    text = text_of(peer_job(job, steps=59, batch=rows, length=length))
    ends: list[float] = []

    class Batches:
        batch_size, sequence_length, windows_per_epoch = rows, length, 1000 * rows
        tokens_per_step, masked = rows * length, False
        split = Split(text)

        def batch(self, index: int) -> Any:
            part = text[index * rows : (index + 1) * rows]
            return part[:, :-1].copy(), part[:, 1:].copy()

    class Clock(TrainerEvents):
        def on_step(self, trainer: Trainer, train_loss: float) -> None:
            ends.append(time.perf_counter())

    def trainer(stop: int | None, folder: str) -> Trainer:
        model = trained_model(job)
        model.set_drop_rate(0.1)
        config = TrainerConfig(
            optimizer="adamw", max_steps=60, target_loss=None, checkpoint_interval=20, eval_interval=1000,
            eval_batches=1, sample_tokens=0,
        )  # fmt: skip
        made = Trainer(
            model, Batches(), None, config,  # type: ignore[arg-type]
            run=pick_runtime(job["device"], "bf16"), checkpoints=Path(folder), fingerprint={}, listeners=[Clock()],
            interrupted=lambda: stop is not None and made.step >= stop,
        )  # fmt: skip
        return made

    with tempfile.TemporaryDirectory() as folder:
        run = trainer(cut, folder)
        run.fit()
        if cut is not None:
            run = trainer(None, folder)
            assert run.resume()
            run.fit()
        gaps = [later - earlier for earlier, later in pairwise(ends)]
        return {name: tensor.detach().cpu() for name, tensor in run.model.named_parameters()}, gaps


def rate(found: Found) -> float:
    return float(found["tokens"] / found["seconds"])


TRAINER, COMPILED = "Trainer, bf16", "Trainer, bf16, compiled"
# name: (what is shown, target, side: measurement); the first side is ours
Row = tuple[Callable[[Found], str], str, dict[str, Callable[[Job], Found]]]
ROWS: dict[str, Row] = {
    "training 124M, T 1,024, tokens/s": (
        lambda f: f"{rate(f):,.0f} (peak {f['peak'] / 2**30:.1f} GiB)",
        "600,000; 1.25 times the Trainer",
        {
            "ours, 64 rows": lambda job: train_ours(job, 64, 1024, 12),
            f"{TRAINER}, 32 rows": lambda job: train_peer(job, 32, 1024, 8, TRAINER),
        },
    ),
    "training 124M, steps of 128 tokens a second": (
        lambda f: f"{1 / f['seconds']:,.0f}",
        "500",
        {
            "ours": lambda job: train_ours(job, 1, 128, 200),
            TRAINER: lambda job: train_peer(job, 1, 128, 60, TRAINER),
        },
    ),
    "338,025 tokens by heart at 124M, full pass under 0.0999, seconds": (
        lambda f: f"{f['seconds']:.0f} (loss {f['loss'] or math.nan:.4f}, {f['epochs']:.1f} epochs)",
        "under 60",
        {"ours": memorise},
    ),
    **{
        f"decoding 124M, {name}, batch {batch}, tokens/s": (
            lambda f: f"{f['tokens a second']:,.0f}",
            target,
            {
                "ours": lambda job, b=batch, o=options, n=new: decode(job, b, "ours", o, n),
                **({} if options else {"transformers": lambda job, b=batch: decode(job, b, "transformers", {}, 128)}),
            },
        )
        for name, batch, options, new, target in (
            ("greedy", 1, {}, 960, "3,500"),
            ("greedy", 256, {}, 256, "100,000"),
            ("sampled", 1, SAMPLED, 960, ""),
            ("sampled", 256, SAMPLED, 256, ""),
        )
    },
    "774M in 16 GB, AdamW, tokens/s": (
        lambda f: f"{rate(f):,.0f} (peak {f['peak'] / 1e9:.1f} GB)",
        "runs",
        {"ours": lambda job: in_memory(job, "gpt2-large", 16e9)},
    ),
    "1.5B in 24 GB, Muon, tokens/s": (
        lambda f: f"{rate(f):,.0f} (peak {f['peak'] / 1e9:.1f} GB)",
        "runs",
        {"ours": lambda job: in_memory(job, "gpt2-xl", 24e9, optimizer="muon")},
    ),
    "a save's stall, milliseconds; resumed run bit-equal": (
        lambda f: f"{1000 * f['stall']:.0f} (a step of 16 x 1,024 takes {1000 * f['step']:.0f}); {f['equal']}",
        "under 50; True",
        {"ours": saving},
    ),
    # Last, for it compiles for a minute or two.
    "training 124M, T 1,024: the Trainer compiled, tokens/s": (
        lambda f: f"{rate(f):,.0f} (peak {f['peak'] / 2**30:.1f} GiB)",
        "",
        {f"{COMPILED}, 32 rows": lambda job: train_peer(job, 32, 1024, 8, COMPILED)},
    ),
}  # fmt: skip


def table(rows: dict[str, Any]) -> list[str]:
    lines = ["| figure | target | side | here |", "|---|---|---|---|"]
    for name in (name for name in ROWS if name in rows):
        show, target, _ = ROWS[name]
        for side, found in rows[name]["sides"].items():
            here = f"not measured: {found['failed']}" if "failed" in found else show(found)
            first = side == next(iter(rows[name]["sides"]))
            shown = f"**{side}**" if side.startswith("ours") else side
            lines.append(f"| {name if first else ''} | {target if first else ''} | {shown} | {here} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--text", default=str(PLAYS), help="to learn by heart (default: the bundled plays)")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it (default: 540)")
    parser.add_argument("--dry", action="store_true", help="tiny models on a CPU: does it run at all")
    arguments = parser.parse_args()
    if arguments.child:
        job = json.loads(arguments.child)
        print(json.dumps(ROWS[job["row"]][2][job["side"]](job)))
        return
    import torch

    if not torch.cuda.is_available() and not arguments.dry:
        parser.exit(2, "no GPU was found; --dry runs the same code on a CPU.\n")
    ends = time.monotonic() + arguments.seconds
    rows: dict[str, Any] = json.loads(ROWS_FILE.read_text()) if ROWS_FILE.exists() and not arguments.dry else {}
    for name in arguments.rows:
        rows[name] = {"sides": {}, **machine(), "command": "python -m benchmarks.gpu"}
        for side in ROWS[name][2]:
            job = {"row": name, "side": side, "dry": arguments.dry, "text": arguments.text}
            job["device"] = "cpu" if arguments.dry else "cuda"
            rows[name]["sides"][side] = one(job, ends - time.monotonic())
        print(*table({name: rows[name]})[2:], sep="\n", flush=True)
        if not arguments.dry:
            ROWS_FILE.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            lines = [START, "", "## One GPU", "", *table(rows), *origin_lines(rows), "", END]
            write_section(START, END, "\n".join(lines))
    if any("failed" in side for row in rows.values() for side in row["sides"].values()):
        sys.exit(1)


def one(job: Job, seconds: float) -> Found:
    if seconds < 10:
        return {"failed": "no time was left"}
    from gpt2ops.process.startup import CUDA_MEMORY, KEEP_MEMORY

    environment = {**CUDA_MEMORY, **KEEP_MEMORY, "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    found = in_a_process([sys.executable, "-m", "benchmarks.gpu", "--child", json.dumps(job)], environment, seconds)
    print(f"{time.monotonic() - started:6.1f} s  {job['row']}: {job['side']}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
