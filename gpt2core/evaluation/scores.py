"""Loss, sliding-window perplexity, bits per byte, token accuracy and verbatim recall of a model.

Shapes: B windows, T block_size, V vocab_size.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gpt2core.data.examples.batches import example_bounds, stack_examples
from gpt2core.data.tokens import TokenSplit
from gpt2core.decoding import generate
from gpt2core.evaluation.blocks import BlockLosses, blocks_of, losses_by_example
from gpt2core.kernels.head_loss import head_scores, padded_logits
from gpt2core.model import GPT

Logits = Callable[[Tensor], Tensor]

# A model that continues this share of its training passages word for word, or whose training loss is under this
# share of the held-out one, has learned the text rather than the language.
MEMORISING_RECALL = 0.5
MEMORISING_LOSS_RATIO = 0.5
# The logits of this many tokens take 0.8 GB.
MAX_TOKENS_A_BATCH = 4096


class Tokens(Protocol):
    """A split: consecutive tokens, read by position. A `TokenSplit` of examples is scored by their answers."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Score:
    """Means over the scored tokens; loss in nats per token."""

    loss: float
    token_accuracy: float
    tokens: int
    bits_per_byte: float | None
    blocks: BlockLosses

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def as_dict(self) -> dict[str, float | int | None]:
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "token_accuracy": self.token_accuracy,
            "tokens": self.tokens,
        }


@torch.no_grad()
def evaluate(
    model: Logits,
    split: Tokens,
    *,
    block_size: int,
    stride: int,
    batch_size: int = 16,
    max_tokens: int | None = None,
    device: torch.device | None = None,
    token_lengths: np.ndarray | None = None,
    on_tokens: Callable[[int], object] | None = None,
) -> Score | None:
    """Score every token but the first once, each with at least block_size - stride tokens before it where there are.

    Of examples only the answers are scored, each after its own prompt; what exceeds a block is not.
    `token_lengths` (V,) are bytes a token, for bits per byte. `on_tokens` is called with the number of tokens scored.
    None for a split of less than two tokens. A GPT should be in eval mode.
    """
    total = min(len(split), max_tokens or len(split))
    if total < 2:
        return None
    device = device or torch.device("cpu")
    batch_size = max(1, min(batch_size, MAX_TOKENS_A_BATCH // block_size))
    # Windows follow each other, and each scores the tokens after those of the one before.
    by_token, by_example = [], []
    correct = bytes_scored = 0
    examples = isinstance(split, TokenSplit) and split.has_answers
    if isinstance(split, TokenSplit) and examples:
        batches = _example_batches(split, total, block_size, batch_size)
    else:
        batches = _window_batches(split, total, block_size, stride, batch_size)
    for token_ids, targets in batches:
        ids, wanted = torch.from_numpy(token_ids).to(device), torch.from_numpy(targets).to(device)
        losses, hits = _losses(model, ids, wanted)
        by_token.append(losses.cpu().numpy())
        by_example.append((targets >= 0).sum(axis=1))
        correct += hits
        counted = targets[targets >= 0]
        if token_lengths is not None:
            bytes_scored += int(token_lengths[counted].sum())
        if on_tokens is not None:
            on_tokens(counted.size)
    if not sum(map(len, by_token)):  # no answer begins within a block
        return None
    of_tokens = np.concatenate(by_token)
    if examples:
        blocks = losses_by_example(of_tokens, np.concatenate(by_example))
    else:
        blocks = blocks_of(total, getattr(split, "document_starts", None)).losses(of_tokens)
    bits_per_byte = blocks.sums.sum() / math.log(2) / bytes_scored if bytes_scored else None
    return Score(blocks.loss, correct / len(of_tokens), len(of_tokens), bits_per_byte, blocks)


def perplexity(model: Logits, split: Tokens, *, block_size: int, stride: int | None = None) -> float:
    """Sliding-window perplexity of a split, nan where it has less than two tokens."""
    score = evaluate(model, split, block_size=block_size, stride=stride or max(1, block_size // 2))
    return score.perplexity if score else math.nan


def _losses(model: Logits, token_ids: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """The losses and number of right guesses where targets (B, T) are not -1."""
    kept = targets >= 0
    if isinstance(model, GPT):  # the head is the largest matrix: apply it only where a target is scored
        x = model.hidden_states(token_ids)[kept]  # (N, C)
        if x.device.type == "cpu":
            return head_scores(x, model.lm_head.weight, targets[kept])
        logits = padded_logits(x, model.lm_head.weight)[:, : model.config.vocab_size]  # (N, V)
    else:
        logits = model(token_ids)[kept]
    logits, wanted = logits.float(), targets[kept]
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return losses, int((logits.argmax(-1) == wanted).sum())


def _example_batches(
    split: TokenSplit, total: int, block_size: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of the examples that begin in the first `total` tokens, as `stack_examples` gives them."""
    starts, stops = example_bounds(split)
    rows = [
        [(int(start), int(min(stop, start + block_size + 1)))]
        for start, stop in zip(starts, stops, strict=True)
        if start < total and stop - start > 1
    ]
    for first in range(0, len(rows), batch_size):
        token_ids, targets, _ = stack_examples(split, rows[first : first + batch_size], block_size)
        if (targets >= 0).any():
            yield token_ids, targets


def _window_batches(
    split: Tokens, total: int, block_size: int, stride: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of (token_ids, targets) windows, each (B, T) int64; targets scored by an earlier window are -1."""
    stride = min(stride, block_size)
    starts, scored_to = [], 1  # token 0 has no context
    while scored_to < total:
        # The first window scores all its targets, each later one the next `stride`.
        start = 0 if scored_to == 1 else max(0, min(scored_to + stride, total) - block_size - 1)
        stop = min(start + block_size, total - 1)
        starts.append((start, stop, scored_to))
        scored_to = stop + 1
    # A batch has windows of one length: only the last window, or a single short one, can differ.
    batch: list[tuple[int, int, int]] = []
    for window in starts:
        if batch and (len(batch) == batch_size or window[1] - window[0] != batch[0][1] - batch[0][0]):
            yield _stack(split, batch)
            batch = []
        batch.append(window)
    yield _stack(split, batch)


def _stack(split: Tokens, windows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    token_ids, targets = [], []
    for start, stop, scored_to in windows:
        tokens = split.read(start, stop + 1).astype(np.int64)
        target = tokens[1:].copy()
        target[: scored_to - start - 1] = -1
        token_ids.append(tokens[:-1])
        targets.append(target)
    return np.stack(token_ids), np.stack(targets)


@torch.no_grad()
def verbatim_recall(
    model: GPT,
    split: Tokens,
    *,
    passages: int,
    prompt_tokens: int,
    continuation_tokens: int,
    batch_size: int = 16,
    device: torch.device | None = None,
) -> float | None:
    """Share of evenly spaced passages whose continuation greedy decoding gives token for token.

    After Carlini et al. 2023 (arXiv 2202.07646). None where the split holds no such passage.
    """
    block_size = model.config.block_size
    prompt_tokens = min(prompt_tokens, block_size // 2)
    continuation_tokens = min(continuation_tokens, block_size - prompt_tokens)
    length = prompt_tokens + continuation_tokens
    if passages == 0 or len(split) < length or continuation_tokens == 0:
        return None
    starts = np.unique(np.linspace(0, len(split) - length, min(passages, len(split) // length)).astype(np.int64))
    recalled = 0
    for i in range(0, len(starts), batch_size):
        rows = np.stack([split.read(int(s), int(s) + length) for s in starts[i : i + batch_size]]).astype(np.int64)
        ids = torch.from_numpy(rows).to(device or "cpu")
        output = generate(model, ids[:, :prompt_tokens], max_new_tokens=continuation_tokens, eos_token_id=None)
        recalled += int((output == ids).all(dim=1).sum())
    return recalled / len(starts)


def unigram_loss(split: Tokens, max_tokens: int = 10_000_000) -> float:
    """Entropy of the split's token frequencies in nats, of examples their answers': a model's loss without context."""
    tokens = split.read(0, min(len(split), max_tokens))
    if isinstance(split, TokenSplit) and split.has_answers:
        tokens = tokens[split.answers(0, len(tokens))]
    counts = np.bincount(tokens)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def verdict(train_loss: float, held_out_loss: float | None, recall: float | None, unigram_loss: float) -> str:
    """`memorising`, `underfitting`, `generalising`, or `unknown` where nothing was held out."""
    if recall is not None and recall >= MEMORISING_RECALL:
        return "memorising"
    if held_out_loss is not None and train_loss < MEMORISING_LOSS_RATIO * held_out_loss:
        return "memorising"
    if train_loss >= unigram_loss:  # no better than token frequencies
        return "underfitting"
    return "generalising" if held_out_loss is not None else "unknown"
