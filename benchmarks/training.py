"""Training speed and memory against `transformers.Trainer` and a hand-written loop, each in a process of its own.

python -m benchmarks.training [--cases NAME ...] [--repeats 5]
A GPU's figures are in benchmarks.gpu. Prints the table and writes it into benchmarks/RESULTS.md; rows of cases not run
this time are kept as they were.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import in_a_process, machine, origin_lines, write_section

HERE = Path(__file__).resolve().parent
ROWS = HERE / "training.json"
START, END = "<!-- training: written by benchmarks.training -->", "<!-- training: end -->"
COMMAND_SECONDS = 900
WARM_UP = 1  # steps, not timed: the first one gets the memory and makes the optimizer's state

OURS = ("ours", "ours in fp32")
PEERS = ("Trainer, its defaults (fp32)", "Trainer, bf16", "hand-written loop, autocast")
# name: (preset, batch_size, sequence_length, timed steps, sides)
CASES: dict[str, tuple[str, int, int, int, tuple[str, ...]]] = {
    "124M, 16 x 128": ("gpt2", 16, 128, 3, (*OURS, *PEERS)),
    "124M, 4 x 512": ("gpt2", 4, 512, 3, (*OURS, *PEERS)),
    "small preset, 4 x 128": ("small", 4, 128, 60, (*OURS, *PEERS)),
}


def child(job: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in this process: seconds of each step, the last loss, and this process's peak in bytes."""
    import torch

    if job["side"] == "matmul rate":
        return {"rate": matmul_rate(job)}
    torch.manual_seed(0)
    run = {"ours": ours, "Trai": trainer, "hand": loop}[job["side"][:4]]
    ends, losses = run(job)
    seconds = [later - earlier for earlier, later in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False)]
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    mean = (ends[-1] - ends[WARM_UP - 1]) / (len(ends) - WARM_UP)
    return {"seconds": statistics.median(seconds), "mean_seconds": mean, "peak": peak, "losses": losses}


def text_of(job: dict[str, Any]) -> Any:
    """Tokens for all the steps, the same for every side: (steps * batch, T + 1)."""
    import numpy as np

    rows = (WARM_UP + job["steps"]) * job["batch"]
    return np.random.default_rng(0).integers(0, config_of(job).vocab_size, (rows, job["length"] + 1), dtype=np.int64)


def ours(job: dict[str, Any]) -> tuple[list[float], list[float]]:
    """`gpt2core.Trainer` with the settings of params.yaml, as the stage sets it up."""

    from benchmarks.trained import params_of, trainer_of
    from gpt2core.runtime import pick_runtime, set_threads
    from gpt2core.training.events import TrainerEvents
    from gpt2core.training.trainer import Trainer
    from gpt2ops.process.startup import keep_freed_memory, share_cores

    share_cores()
    keep_freed_memory()
    set_threads(job.get("threads"))
    rows = text_of(job)
    never = dict.fromkeys(("train.log_interval", "train.eval_interval", "train.checkpoint_interval"), 10**7)
    params = params_of(
        {
            **never,
            "model.preset": job["preset"],
            "model.drop_rate": config_of(job).drop_rate,
            "train.optimizer": "adamw",
            "train.eval_batches": 1,
            "train.sample_tokens": 0,
            "train.stop": {"max_steps": WARM_UP + job["steps"], "target_loss": None},
        }
    )

    class Numbered:
        """Batches without a split: row after row."""

        batch_size, sequence_length, windows_per_epoch = job["batch"], job["length"], 10**9
        tokens_per_step, masked = batch_size * sequence_length, False
        split = Split(rows)

        def batch(self, index: int) -> Any:
            part = rows[index * job["batch"] : (index + 1) * job["batch"]]
            return part[:, :-1].copy(), part[:, 1:].copy()

    ends: list[float] = []
    losses: list[float] = []

    class Clock(TrainerEvents):
        def on_step(self, trainer: Trainer, train_loss: float) -> None:
            ends.append(time.perf_counter())
            losses.append(train_loss)

    precision = "fp32" if "fp32" in job["side"] else "auto"
    with tempfile.TemporaryDirectory() as folder:
        trainer_of(params, Numbered(), folder, pick_runtime("auto", precision), (Clock(),)).fit()
    return ends, losses


class Split:
    """What a run looks at of its text beside the batches."""

    name, num_documents, sha256 = "train", 1, ""

    def __init__(self, rows: Any) -> None:
        self.tokens = rows.ravel()

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> Any:
        return self.tokens[start:stop].astype("uint16")


def config_of(job: dict[str, Any]) -> Any:
    """The sizes and the dropout of every side: the preset's, with the job's own `changes`."""
    from gpt2core.config import GPTConfig

    return GPTConfig.from_preset(job["preset"], **job.get("changes", {}))


def hugging_face_model(job: dict[str, Any]) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = config_of(job)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size, n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
            n_positions=config.block_size, bos_token_id=0, eos_token_id=0,
            resid_pdrop=config.drop_rate, embd_pdrop=config.drop_rate, attn_pdrop=config.drop_rate,
        )
    )  # fmt: skip


def trainer(job: dict[str, Any]) -> tuple[list[float], list[float]]:
    """`transformers.Trainer` as `run_clm` sets it up: its defaults, labels that are the inputs."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    on_gpu = torch.cuda.is_available()
    ends: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

        def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    examples = [{"input_ids": row[:-1], "labels": row[:-1]} for row in text_of(job).tolist()]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=job["batch"], max_steps=WARM_UP + job["steps"], save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=not on_gpu, logging_steps=1, bf16="bf16" in job["side"],
            torch_compile="compiled" in job["side"],
        )  # fmt: skip
        model = hugging_face_model(job)
        Trainer(model=model, args=arguments, train_dataset=examples, callbacks=[Clock()]).train()  # type: ignore[arg-type]
    return ends, losses


def loop(job: dict[str, Any]) -> tuple[list[float], list[float]]:
    """What people write: the model of `transformers`, autocast, fused AdamW."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, rows = hugging_face_model(job).train().to(device), torch.from_numpy(text_of(job)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
    ends, losses = [], []
    for batch in rows[:, :-1].split(job["batch"]):
        with torch.autocast(device, torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        ends.append(time.perf_counter())
    return ends, losses


def matmul_shapes(job: dict[str, Any]) -> tuple[list[tuple[int, int, int]], float]:
    """(rows, in, out) of every matrix of the model, and the floating-point operations of a step in them."""
    config = config_of(job)
    n, c, f = job["batch"] * job["length"], config.n_embd, config.feed_forward_width
    shapes = [(n, c, 3 * c), (n, c, c), (n, c, f), (n, f, c)] * config.n_layer + [(n, c, config.vocab_size)]
    return shapes, sum(6.0 * rows * width * out for rows, width, out in shapes)


def matmul_rate(job: dict[str, Any]) -> float:
    """Operations a second of the model's matrices alone, forward and backward, in bf16."""
    import torch

    from gpt2core.runtime import set_threads

    set_threads(None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes, operations = matmul_shapes(job)
    seconds = 0.0
    for (rows, width, out), count in {shape: shapes.count(shape) for shape in shapes}.items():
        x, w, g = (torch.randn(a, b, device=device).bfloat16() for a, b in ((rows, width), (out, width), (rows, out)))
        times = []
        for _ in range(6):
            started_at = time.perf_counter()
            x @ w.t(), g @ w, g.t() @ x
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started_at)
        seconds += count * statistics.median(times[1:])
    return operations / seconds


def measure(job: dict[str, Any], more: dict[str, str] | None = None) -> dict[str, Any]:
    environment = {"TOKENIZERS_PARALLELISM": "false", **(more or {})}
    command = [sys.executable, "-m", "benchmarks.training", "--child", json.dumps(job)]
    return in_a_process(command, environment, COMMAND_SECONDS)


def run_case(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    preset, batch, length, steps, sides = CASES[name]
    base = {"preset": preset, "batch": batch, "length": length, "steps": steps}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in ("matmul rate", *sides)}
    for _ in range(arguments.repeats):
        for side, results in found.items():  # interleaved: all see the same machine
            results.append(measure({**base, "side": side}))
    rate = statistics.median(result["rate"] for result in found.pop("matmul rate"))
    row: dict[str, Any] = {"sides": {}, **base, "rate": rate, **machine(), "command": arguments.line}
    row["operations"] = matmul_shapes(base)[1]
    for side, results in found.items():
        good = [result for result in results if "failed" not in result]
        median = {key: statistics.median(result[key] for result in good) for key in ("seconds", "peak") if good}
        row["sides"][side] = {**median, "runs": len(good), "all": [r["seconds"] for r in good]} if good else results[0]
    return row


def table(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| case | side | tokens/s | ours is | of the bf16 matmul rate | peak memory | runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in CASES if name in rows):
        row = rows[name]
        for side, result in row["sides"].items():
            if "failed" in result:
                lines.append(f"| {name} | {side} | not measured: {result['failed']} | | | | |")
                continue
            own = row["sides"]["ours"]["seconds"]
            ratio = "" if side == "ours" else f"{result['seconds'] / own:.2f}x"
            share = f"{row['operations'] / result['seconds'] / row['rate']:.0%} of {row['rate'] / 1e12:.2f} TFLOP/s"
            lines.append(
                f"| {name} | {'**ours**' if side == 'ours' else side} | "
                f"{row['batch'] * row['length'] / result['seconds']:,.0f} | {ratio} | "
                f"{share if side == 'ours' else ''} | {result['peak'] / 2**30:.1f} GiB | {result['runs']} |"
            )
    return lines


def report(rows: dict[str, Any]) -> str:
    lines = [START, "", "## Training: medians of a step, with the optimizer, interleaved", "", *table(rows)]
    return "\n".join([*lines, *origin_lines(rows), "", END])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(json.loads(arguments.child))))
        return
    arguments.line = f"python -m benchmarks.training --repeats {arguments.repeats}"
    if arguments.cases:
        arguments.line += f" --cases {' '.join(map(repr, arguments.cases))}"
    rows: dict[str, Any] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    for name in arguments.cases or CASES:
        rows[name] = run_case(name, arguments)
        print(*table({name: rows[name]})[2:], sep="\n", flush=True)
        ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        write_section(START, END, report(rows))


if __name__ == "__main__":
    main()
