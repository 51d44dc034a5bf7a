"""How often the gate is wrong: promotions by luck, and improvements that it misses.

    python -m benchmarks.gate_power [--models 10] [--steps 250]

Real: small models of one recipe on the bundled plays (two layers of width 64, the 1,023 most frequent tokens and one
for the rest), trained with other seeds for seconds each, and the losses that they have on each held-out block.
Simulated: 200 pairs of models whose blocks are drawn from the real ones, so that seed and text vary as they do there.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import write_report
from gpt2core.config import GPTConfig
from gpt2core.evaluation.blocks import BLOCK_TOKENS, BlockLosses
from gpt2core.evaluation.scores import evaluate
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2ops.params.sections import Gate
from gpt2ops.registry.comparison import NOT_ENOUGH, Comparison, compare_with_champion
from gpt2ops.registry.held_out import Champion, HeldOut

CORPUS = Path(__file__).resolve().parents[1] / "data/corpus/shakespeare-plays.txt"
WORDS, CONTEXT, BATCH = 1024, 64, 16
PAIRS = 200
SEEDS = 5  # trained to learn how far the seeds of a recipe lie apart
GAIN = 0.01  # of perplexity


class Array:
    """Tokens in memory."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop]


def plays() -> tuple[np.ndarray, np.ndarray]:
    """Training text and held-out text, each an array of ids below WORDS."""
    ids = np.array(Tokenizer().encode(CORPUS.read_text(encoding="utf-8")))
    frequent = np.argsort(-np.bincount(ids, minlength=50257))[: WORDS - 1]
    smaller = np.full(50257, WORDS - 1)
    smaller[frequent] = np.arange(WORDS - 1)
    edge = int(0.8 * len(ids))
    return smaller[ids[:edge]], smaller[ids[edge:]]


def train(text: np.ndarray, seed: int, steps: int) -> GPT:
    torch.manual_seed(seed)
    model = GPT(GPTConfig(WORDS, CONTEXT, n_layer=2, n_head=2, n_embd=64, drop_rate=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    tokens = torch.from_numpy(text)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - CONTEXT - 1, (BATCH,)).tolist()
        rows = torch.stack([tokens[start : start + CONTEXT + 1] for start in starts])
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def real_losses(models: int, steps: int) -> np.ndarray:
    """Mean losses (models, blocks) of trained models on each whole block of the held-out text."""
    torch.set_num_threads(1)  # matrices this small are slower on several
    text, held_out = plays()
    held_out = held_out[: len(held_out) // BLOCK_TOKENS * BLOCK_TOKENS + 1]
    rows = []
    for seed in range(models):
        score = evaluate(train(text, seed, steps), Array(held_out), block_size=CONTEXT, stride=CONTEXT // 2)
        assert score is not None
        rows.append(score.blocks.sums / score.blocks.counts)
    return np.stack(rows)


@dataclass(frozen=True)
class Pairs:
    """Losses of models that do not exist, drawn from those of `real` ones (models, blocks) of one recipe.

    A block of a pair has the losses that two real models of other seeds have on one real block. `seed_luck` is how far
    the models' true losses lie apart: 1 as really, 0 not at all, so that only the text is luck.
    """

    real: np.ndarray
    blocks: int
    seed_luck: float = 1.0
    gain: float = 0.0  # of perplexity, of the candidate's recipe

    def draw(self, count: int, seed: int) -> Iterator[tuple[BlockLosses, BlockLosses, dict[str, Any]]]:
        """Candidate, champion, and what train.json says of the SEEDS other seeds of the candidate's recipe."""
        generator = np.random.default_rng(seed)
        means = self.real.mean(axis=1, keepdims=True)
        spread = means.std(ddof=1) * self.seed_luck
        rows = self.real - means
        for _ in range(count):
            one, other = generator.choice(len(rows), 2, replace=False)
            chosen = generator.integers(rows.shape[1], size=self.blocks)
            levels = means.mean() + generator.normal(0, spread, 2 + SEEDS)
            candidate = rows[one, chosen] + levels[0] + np.log1p(-self.gain)
            stdev = float(levels[2:].std(ddof=1))
            seeds = {"stdev": stdev, "runs": dict.fromkeys(map(str, range(SEEDS)))}
            yield losses_of(candidate), losses_of(rows[other, chosen] + levels[1]), seeds


def losses_of(means: np.ndarray) -> BlockLosses:
    return BlockLosses(means * BLOCK_TOKENS, np.full(len(means), BLOCK_TOKENS), f"{BLOCK_TOKENS} tokens")


def decide(candidate: BlockLosses, champion: BlockLosses, seeds: Mapping[str, Any] | None = None) -> Comparison:
    """What the gate says, at its default settings."""
    tokens = int(candidate.counts.sum())
    held_out = HeldOut("test", float(np.exp(candidate.loss)), "", "", tokens, tokens)
    best = Champion("1", float(np.exp(champion.loss)), losses=champion)
    return compare_with_champion(held_out, candidate, best, Gate(), seeds)


def share(decisions: Sequence[Comparison]) -> float:
    return sum(decision.promoted for decision in decisions) / len(decisions)


def decisions(pairs: Pairs, *, with_seeds: bool, count: int = PAIRS, seed: int = 0) -> list[Comparison]:
    return [decide(one, other, seeds if with_seeds else None) for one, other, seeds in pairs.draw(count, seed)]


def enough_blocks(real: np.ndarray) -> int:
    """So many blocks that a gain of GAIN is told four times in five, by the spread of the real differences."""
    rows = real - real.mean(axis=1, keepdims=True)
    apart = [(rows[i] - rows[j]).std(ddof=1) for i in range(len(rows)) for j in range(i)]
    return int(np.ceil((2.8 * np.mean(apart) / -np.log1p(-GAIN)) ** 2))


def report(real: np.ndarray) -> list[str]:
    here, enough = real.shape[1], enough_blocks(real)
    seed_spread = real.mean(axis=1).std(ddof=1)
    rows = [
        ("same recipe, only the text is luck", here, Pairs(real, here, 0.0), False),
        ("same recipe, only the text is luck", 20, Pairs(real, 20, 0.0), False),
        ("same recipe, other seeds, spread of 5 seeds measured", here, Pairs(real, here), True),
        ("same recipe, other seeds, spread not measured (*)", here, Pairs(real, here), False),
        ("1% better, only the text is luck", here, Pairs(real, here, 0.0, GAIN), False),
        ("1% better, only the text is luck", enough, Pairs(real, enough, 0.0, GAIN), False),
        ("1% better, only the text is luck", 2 * enough, Pairs(real, 2 * enough, 0.0, GAIN), False),
        ("1% better, seeds a twentieth as far apart, measured", 3 * enough, Pairs(real, 3 * enough, 0.05, GAIN), True),
    ]
    lines = [
        f"{len(real)} models; their losses lie {seed_spread:.4f} nats apart (standard deviation between seeds); a gain "
        f"of 1% is told four times in five by {enough} blocks of {BLOCK_TOKENS} tokens.",
        "",
        "| pairs of models | blocks | promoted | not enough text |",
        "|---|---|---|---|",
    ]
    for name, blocks, pairs, with_seeds in rows:
        found = decisions(pairs, with_seeds=with_seeds)
        unsure = sum(NOT_ENOUGH in decision.sentence for decision in found) / len(found)
        lines.append(f"| {name} | {blocks} | {share(found):.1%} | {unsure:.1%} |")
    return [
        *lines,
        "",
        "(*) The test of the text alone: it is right that these models differ, but not that their recipes do. In a "
        "project the gate refuses such a candidate, for it sees that nothing but the seed differs.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--steps", type=int, default=250)
    arguments = parser.parse_args()
    lines = report(real_losses(arguments.models, arguments.steps))
    command = f"python -m benchmarks.gate_power --models {arguments.models} --steps {arguments.steps}"
    write_report("gate_power", "Promotions by luck, and gains that the gate sees", lines, command)


if __name__ == "__main__":
    main()
