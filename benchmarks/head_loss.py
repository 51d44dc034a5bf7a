"""The head and its loss, forward and backward: ours, `F.linear_cross_entropy`, and plain logits with cross-entropy.

    python -m benchmarks.head_loss

One process; each round runs every variant once, so a busy machine slows all alike. Memory is the peak over that before.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.results import write_report
from gpt2core.config import GPTConfig
from gpt2core.kernels.head_loss import head_loss

# GPT-2 124M sees the same 2,048 rows for 16 x 128 and 4 x 512 tokens; 4 x 128 is the default run's step.
ROWS = {"4 x 128": 512, "16 x 128 or 4 x 512": 2048}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TOO_SLOW = 8.0  # times ours: such a variant runs in the first round only
Loss = Callable[[Tensor, Tensor, Tensor, torch.dtype], Tensor]


def ours(x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        return head_loss(x, weight, targets)


def plain(x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    return F.cross_entropy((x.to(dtype) @ weight.to(dtype).t()).float(), targets)


def chunked(**options: object) -> Loss:
    def loss(x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        chosen = torch.nn.LinearCrossEntropyOptions(**options)
        return F.linear_cross_entropy(x.to(dtype), weight.to(dtype), targets, options=chosen)

    return loss


VARIANTS: dict[str, Loss] = {
    "ours": ours,
    "plain logits and cross_entropy": plain,
    "linear_cross_entropy, auto": chunked(),
    "linear_cross_entropy, accurate, chunks of 256": chunked(
        acc_policy="accurate", chunking_method=None, batch_chunk_size=256
    ),
}


def measure(loss: Loss, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> tuple[float, float, float]:
    """Seconds, peak MiB over the start, and the loss of one forward and backward."""
    x.grad = weight.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    before, started_at = _status("VmRSS"), time.perf_counter()
    value = loss(x, weight, targets, dtype)
    value.backward()
    return time.perf_counter() - started_at, (_status("VmHWM") - before) / 1024, value.item()


def _status(key: str) -> int:
    """KiB, from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    config = GPTConfig.from_preset("gpt2")
    torch.manual_seed(0)
    weight = torch.empty(config.vocab_size, config.n_embd).normal_(std=0.02).requires_grad_()
    lines = [
        "| tokens | precision | variant | ms | time, ours is 1 | peak MiB | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for tokens, rows in ROWS.items():
        x = torch.randn(rows, config.n_embd).requires_grad_()
        targets = torch.randint(config.vocab_size, (rows,))
        for precision, dtype in DTYPES.items():
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VARIANTS}
            for number in range(rounds + 1):
                for name, loss in VARIANTS.items():
                    if number and found[name] and found[name][0][0] > TOO_SLOW * found["ours"][0][0]:
                        continue
                    result = measure(loss, x, weight, targets, dtype)
                    print(f"{tokens}, {precision}, round {number}, {name}: {result[0]:.2f} s", flush=True)
                    found[name].append(result)
            for name, measured in found.items():
                results = measured[1:] or measured  # the first round warms up
                seconds = [result[0] for result in results]
                pairs = zip(measured, found["ours"], strict=False)
                ratio = median([one[0] / other[0] for one, other in pairs][-len(results) :])
                peak = median(result[1] for result in results)
                lines.append(
                    f"| {tokens} | {precision} | {name} | {1000 * median(seconds):.0f} | {ratio:.2f} | {peak:,.0f} | "
                    f"{results[-1][2]:.5f} |"
                )
                print(lines[-1], flush=True)
    title = "The head's loss: 124M, forward and backward, medians of interleaved rounds"
    write_report("head_loss", title, lines, f"python -m benchmarks.head_loss --rounds {rounds}")


if __name__ == "__main__":
    main()
