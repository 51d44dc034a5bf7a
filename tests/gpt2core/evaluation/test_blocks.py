"""Blocks of a text, and the losses in them."""

import itertools

import numpy as np
import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.evaluation.blocks import BLOCK_TOKENS, FEWEST_BLOCKS, FEWEST_DOCUMENTS, BlockLosses, blocks_of
from gpt2core.evaluation.scores import evaluate
from gpt2core.model import GPT
from tests.support.training import ArrayTokens


@pytest.mark.parametrize("total", [2, 300, 512, 767, 768, 1024, 5000])
def test_runs_of_tokens_cover_the_text_and_none_is_short(total):
    blocks = blocks_of(total)
    sizes = np.diff(blocks.edges)
    assert blocks.edges[0] == 0
    assert blocks.edges[-1] == total
    assert all(BLOCK_TOKENS // 2 <= size < BLOCK_TOKENS * 1.5 for size in sizes) or len(sizes) == 1
    assert set(sizes[:-1]) <= {BLOCK_TOKENS}


def test_documents_are_the_blocks_where_there_are_enough():
    starts = np.arange(FEWEST_DOCUMENTS) * 7
    found = blocks_of(7 * FEWEST_DOCUMENTS, starts)
    assert found.unit == "document"
    assert found.edges.tolist() == [*starts.tolist(), 7 * FEWEST_DOCUMENTS]
    few = blocks_of(7 * FEWEST_DOCUMENTS, starts[:-1])
    assert few.unit == f"{BLOCK_TOKENS} tokens"


def test_only_documents_that_begin_in_the_scored_part_count():
    starts = np.arange(100) * 7
    assert blocks_of(7 * FEWEST_DOCUMENTS, starts).edges.tolist() == [*starts[:FEWEST_DOCUMENTS], 7 * FEWEST_DOCUMENTS]


def test_a_block_has_the_losses_of_its_tokens():
    """The first token is not scored; a document of that token alone goes with the next."""
    starts = np.array([0, 1, *range(5, 5 + 3 * FEWEST_DOCUMENTS, 3)])
    total = int(starts[-1]) + 3
    of_tokens = np.random.default_rng(0).random(total - 1)
    found = blocks_of(total, starts).losses(of_tokens)
    edges = [0, *starts[2:], total]
    by_hand = [of_tokens[max(low, 1) - 1 : high - 1] for low, high in itertools.pairwise(edges)]
    np.testing.assert_allclose(found.sums, [part.sum() for part in by_hand])
    assert found.counts.tolist() == [len(part) for part in by_hand]
    assert found.loss == pytest.approx(of_tokens.mean())


def test_a_score_has_the_losses_of_its_blocks():
    torch.manual_seed(0)
    model = GPT(GPTConfig(23, 16, n_layer=1, n_head=2, n_embd=8, drop_rate=0.0)).eval()
    tokens = ArrayTokens(1500, 0)
    whole = evaluate(model, tokens, block_size=16, stride=5, batch_size=3)
    assert whole.blocks.counts.tolist() == [511, 512, 476]
    assert whole.loss == whole.blocks.loss
    # A text cut at a block's end has the same losses up to there: a window sees only what is before it.
    part = evaluate(model, tokens, block_size=16, stride=1, max_tokens=1024)
    assert part.blocks.sums[0] == pytest.approx(
        evaluate(model, tokens, block_size=16, stride=1).blocks.sums[0], rel=1e-5
    )


def test_the_standard_error_is_that_of_a_mean_for_blocks_of_one_size():
    means = np.random.default_rng(0).normal(4, 0.3, 50)
    found = BlockLosses(means * 512, np.full(50, 512), "512 tokens")
    assert found.stderr == pytest.approx(means.std(ddof=1) / 50**0.5)
    few = FEWEST_BLOCKS - 1
    assert BlockLosses(means[:few] * 512, np.full(few, 512), "512 tokens").stderr is None
