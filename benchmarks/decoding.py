"""Decoding speed of `generate` against `transformers.generate`, each measurement in a process of its own.

python -m benchmarks.decoding [--model DIR] [--text FILE] [--cases NAME ...] [--repeats 3] [--quick]
Prints the table and writes it into benchmarks/RESULTS.md; rows of cases not run this time are kept as they were.
`--contrastive-python` names a Python with transformers 4.49, the last release with contrastive search. `--beside NAME`
keeps the rows of another machine in a table of their own.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import in_a_process, machine, origin_lines, write_section

HERE = Path(__file__).resolve().parent

PROMPT, NEW = 16, 256
COMMAND_SECONDS = 600
BEAMS = {"num_beams": 5}
CONTRASTIVE = {"penalty_alpha": 0.6, "top_k": 4}
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95}
UNDRAFTED = "ours without a draft"
# name: (batch, options, weights of ours, sides to compare with)
CASES: dict[str, tuple[int, dict[str, Any], str, tuple[str, ...]]] = {
    "batch 1, fp32": (1, {}, "fp32", (UNDRAFTED, "default fp32", "static fp32", "compiled fp32")),
    "batch 1, sampled, fp32": (1, SAMPLED, "fp32", (UNDRAFTED, "default fp32")),
    "batch 1, bf16": (1, {}, "bf16", (UNDRAFTED, "default bf16", "static bf16", "default fp32")),
    "batch 1, int8": (1, {}, "int8", ("default fp32", "default bf16")),
    "batch 16, fp32": (16, {}, "fp32", ("default fp32", "static fp32")),
    "batch 16, bf16": (16, {}, "bf16", ("default bf16", "default fp32")),
    "batch 16, int8": (16, {}, "int8", ("default fp32",)),
    "beam 5, fp32": (1, BEAMS, "fp32", ("default fp32", "static fp32")),
    "contrastive, fp32": (1, CONTRASTIVE, "fp32", ("default fp32",)),
}


def child(job: dict[str, Any]) -> dict[str, Any]:
    """One measurement, in this process: seconds of a generation and of its first token, and this process's peak."""
    import torch

    torch.set_num_threads(job["threads"])
    if job["side"] == "bandwidth":
        return dict(zip(("typical", "best"), bandwidth(), strict=True))
    ids = torch.tensor(job["ids"])
    started = time.perf_counter()
    run = ours(job) if job["side"].startswith("ours") else theirs(job)
    run(ids, 24)
    run(ids, job["new"])  # what is packed or compiled is kept from here on
    ready = time.perf_counter() - started
    first = statistics.median(timed(run, ids, 1)[0] for _ in range(3))
    seconds, out = timed(run, ids, job["new"])
    assert out.shape[1] == PROMPT + job["new"], out.shape
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "first": first, "ready": ready, "peak": peak, "tokens": out.tolist()}


def timed(run: Any, ids: Any, new: int) -> tuple[float, Any]:
    """Seconds to the text on the host, with the same draws each time."""
    import torch

    torch.manual_seed(0)
    started = time.perf_counter()
    out = run(ids, new).cpu()
    return time.perf_counter() - started, out


def bandwidth() -> tuple[float, float]:
    """Bytes a second that all threads read together, of 20 sums over 0.5 GB of fp32: the median and the best."""
    import torch

    numbers = torch.ones(125_000_000)
    times = [timed(lambda a, b: numbers.sum(), None, 0)[0] for _ in range(20)]
    return numbers.nbytes / statistics.median(times), numbers.nbytes / min(times)


def ours(job: dict[str, Any]) -> Any:

    from gpt2core.decoding import generate
    from gpt2core.decoding.packed.model import PackedGPT
    from gpt2core.decoding.strategies import drafting
    from gpt2core.model import GPT

    if job["side"] == UNDRAFTED:
        drafting.MIN_NEW_TOKENS = sys.maxsize
    model: Any = GPT.from_pretrained(job["model"]).eval()
    if job["weights"] != "fp32":
        model = PackedGPT(model, job["weights"])
    return lambda ids, new: generate(
        model, ids, max_new_tokens=new, eos_token_id=None, pad_token_id=0, **job["options"]
    )


def theirs(job: dict[str, Any]) -> Any:
    import torch
    from transformers import GPT2LMHeadModel

    kind, weights = job["side"].split()
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    model = GPT2LMHeadModel.from_pretrained(job["model"], torch_dtype=dtype).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    options = {"do_sample": False, **job["options"]}
    if kind != "default":
        options["cache_implementation"] = "static"
    if kind == "compiled":
        model.forward = torch.compile(model.forward)
    return lambda ids, new: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, **options)


def perplexities(model: str, text: str, max_tokens: int) -> dict[str, float]:
    """Sliding-window perplexity (1,024 tokens, stride 512) of the text's end, for each kind of weights."""
    import torch

    from gpt2core.decoding.packed.model import PackedGPT
    from gpt2core.evaluation.scores import evaluate
    from gpt2core.model import GPT
    from gpt2core.tokenizer import Tokenizer

    ids = Tokenizer().encode(Path(text).read_text(encoding="utf-8"))[-max_tokens:]

    class Split:
        def __len__(self) -> int:
            return len(ids)

        def read(self, start: int, stop: int) -> Any:
            return torch.tensor(ids[start:stop]).numpy()

    def score(model: Any) -> float:
        block = gpt.config.block_size
        result = evaluate(model, Split(), block_size=block, stride=block // 2, batch_size=1)
        assert result is not None
        return result.perplexity

    gpt = GPT.from_pretrained(model).eval()
    found = {"fp32": score(gpt), "bf16": score(PackedGPT(gpt, "bf16")), "int8": score(PackedGPT(gpt, "int8"))}
    with torch.no_grad():  # the same function, with four channels of each layer norm thirty times as large
        for block in gpt.h:
            for norm, linear in ((block.ln_1, block.attn.c_attn), (block.ln_2, block.mlp.c_fc)):
                norm.weight[:4] *= 30
                norm.bias[:4] *= 30
                linear.weight[:, :4] /= 30
    return {**found, "int8 with outlier channels": score(PackedGPT(gpt, "int8"))}


def prompts(count: int, first: int) -> list[list[int]]:
    """Passages of the bundled plays, others for each `first`."""
    from gpt2core.tokenizer import Tokenizer

    plays = HERE.parent / "data/corpus/shakespeare-plays.txt"
    ids = Tokenizer().encode(plays.read_text(encoding="utf-8")[:200_000])
    return [ids[start : start + PROMPT] for start in range(1000 * first + 500, 1000 * first + 500 + 50 * count, 50)]


def measure(job: dict[str, Any], python: str) -> dict[str, Any]:
    command = [python, str(HERE / "decoding.py"), "--child", json.dumps(job)]
    from gpt2core.kernels.cores import short_waits

    environment = {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": str(job["threads"])}
    if job["side"].startswith("ours"):
        environment |= short_waits(os.environ)  # as every command of ours does
    return in_a_process(command, environment, COMMAND_SECONDS)


def run_case(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    batch, options, weights, peers = CASES[name]
    peers = tuple(peer for peer in peers if not arguments.peers or peer in arguments.peers)
    base = {"batch": batch, "options": options, "weights": weights, "model": arguments.model}
    base |= {"threads": arguments.threads, "new": NEW if not arguments.quick else 32}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in ("bandwidth", "ours", *peers)}
    for repeat in range(arguments.repeats):
        base["ids"] = prompts(batch, repeat)
        for side, results in found.items():  # interleaved: all see the same machine
            if side.startswith("compiled") and repeat:
                continue  # minutes of compiling each; one measurement, and said so
            python = sys.executable
            if name.startswith("contrastive") and side not in ("ours", "bandwidth"):
                python = arguments.contrastive_python
            results.append(measure({**base, "side": side}, python) if python else {"failed": "no transformers 4.49"})
    row: dict[str, Any] = {"sides": {}, "new": base["new"], "batch": batch, **machine(), "command": arguments.line}
    reads = found.pop("bandwidth")
    row["bandwidth"] = statistics.median(result["typical"] for result in reads)
    row["best bandwidth"] = max(result["best"] for result in reads)
    for side, results in found.items():
        good = [result for result in results if "failed" not in result]
        if not good:
            row["sides"][side] = results[0] if results else {"failed": "not run"}
            continue
        median = {key: statistics.median(r[key] for r in good) for key in ("seconds", "first", "ready", "peak")}
        row["sides"][side] = {**median, "runs": len(good), "spread": [r["seconds"] for r in good]}
        row["sides"][side]["same tokens"] = good[0]["tokens"] == found["ours"][0].get("tokens")
    return row


def table(rows: dict[str, Any], weight_bytes: dict[str, int]) -> list[str]:
    lines = [
        "| case | side | tokens/s | ours is | first token | peak memory | weights, once a token | same tokens | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in CASES if name in rows):
        row = rows[name]
        mine = row["sides"]["ours"]["seconds"]
        for side, result in row["sides"].items():
            if "failed" in result:
                lines.append(f"| {name} | {side} | not measured: {result['failed']} | | | | | | |")
                continue
            speed = row["new"] * row["batch"] / result["seconds"]
            ratio = "" if side == "ours" else f"{result['seconds'] / mine:.1f}x"
            step = (result["seconds"] - result["first"]) / (row["new"] - 1)
            read = weight_bytes[CASES[name][2]] / step
            typical, best = row["bandwidth"], row["best bandwidth"]
            share = f"{read / 1e9:.1f} of {typical / 1e9:.1f} GB/s ({read / typical:.0%}; best {best / 1e9:.1f})"
            same = "yes" if result["same tokens"] else "no"
            label = {"ours": "**ours**", UNDRAFTED: UNDRAFTED}.get(side, f"transformers, {side}")
            lines.append(
                f"| {name} | {label} | {speed:.1f} | {ratio} | "
                f"{result['first'] * 1e3:.0f} ms | {result['peak'] / 2**20:.0f} MiB | "
                f"{share if side.startswith('ours') else ''} | {same} | {result['runs']} |"
            )
    return lines


def report(rows: dict[str, Any], section: str) -> str:
    matrices = 12 * 12 * 768 * 768 + 50257 * 768  # what a step reads of the 124M model, the tied head once
    lines = [start(section), "", "## Decoding: 124M, prompt 16, 256 new tokens, greedy where not said", ""]
    if section != "decoding":
        lines = [start(section), "", f"### The same on another machine: {next(iter(rows.values()))['device']}", ""]
    lines += table(rows, {"fp32": matrices * 4, "bf16": matrices * 2, "int8": matrices})
    for name, row in rows.items():
        if name == "perplexity":
            exact = row["fp32"]
            parts = [f"{kind} {row[kind]:.4f} ({row[kind] / exact - 1:+.3%})" for kind in row if kind in row["kinds"]]
            lines += ["", f"Perplexity of {row['tokens']:,} tokens at the end of {row['text']}: {', '.join(parts)}."]
    return "\n".join([*lines, *origin_lines(rows), "", end(section)])


def start(section: str) -> str:
    return f"<!-- {section}: written by benchmarks.decoding -->"


def end(section: str) -> str:
    return f"<!-- {section}: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--model", help="directory of a trained 124M; without it random weights, for speed only")
    parser.add_argument("--text", help="held-out text for the perplexity of each kind of weights")
    parser.add_argument("--max-tokens", type=int, default=20_000, help="tokens of the end of --text")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=[*CASES, "perplexity"], metavar="NAME")
    parser.add_argument("--peers", nargs="*", help="only these sides, such as 'default fp32'")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: the cores of this process")
    parser.add_argument("--contrastive-python", help="a Python with transformers 4.49")
    parser.add_argument("--beside", metavar="NAME", help="of another machine: rows and table of its own")
    parser.add_argument("--quick", action="store_true", help="32 tokens, once: does it run at all; writes nothing")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(json.loads(arguments.child))))
        return
    # Not above: a peer's Python, in which the child runs, need not have this library's needs.
    from gpt2core.kernels.cores import usable_cores

    arguments.threads = arguments.threads or usable_cores()
    arguments.line = f"python -m benchmarks.decoding --repeats {arguments.repeats}"
    if arguments.beside:
        arguments.line += f" --beside {arguments.beside}"
    for option in ("model", "text", "contrastive_python"):
        if getattr(arguments, option):
            arguments.line += f" --{option.replace('_', '-')} {option.split('_')[-1].upper()}"
    if arguments.cases != list(CASES):
        arguments.line += f" --cases {' '.join(map(repr, arguments.cases))}"
    if arguments.peers:
        arguments.line += f" --peers {' '.join(map(repr, arguments.peers))}"
    if arguments.quick:
        arguments.repeats = 1
    section = f"decoding-{arguments.beside}" if arguments.beside else "decoding"
    kept = HERE / f"{section}.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() and not arguments.quick else {}
    with tempfile.TemporaryDirectory() as folder:
        text, trained = arguments.text, arguments.model
        if trained is None:
            import torch

            from gpt2core.config import GPTConfig
            from gpt2core.model import GPT

            torch.manual_seed(0)
            GPT(GPTConfig.from_preset("gpt2")).save_pretrained(folder)
            arguments.model = folder
        for name in arguments.cases:
            if name != "perplexity":
                rows[name] = run_case(name, arguments)
                print(*table({name: rows[name]}, dict.fromkeys(("fp32", "bf16", "int8"), 0))[2:], sep="\n", flush=True)
        if trained and text:
            found = perplexities(trained, text, 4000 if arguments.quick else arguments.max_tokens)
            about = {"kinds": list(found), "text": Path(text).name, "tokens": arguments.max_tokens}
            rows["perplexity"] = {**found, **about, **machine(), "command": arguments.line}
    print(report(rows, section))
    if not arguments.quick:
        kept.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        write_section(start(section), end(section), report(rows, section))


if __name__ == "__main__":
    main()
