"""Scores against closed forms and a token-by-token reference."""

import math

import numpy as np
import pytest
import torch

from gpt2core.config import GPTConfig
from gpt2core.evaluation.scores import evaluate, perplexity, unigram_loss, verbatim_recall, verdict
from gpt2core.model import GPT


class ListTokens:
    def __init__(self, values: list[int]) -> None:
        self.values = np.array(values, dtype=np.uint16)

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(17, 8, n_layer=2, n_head=2, n_embd=16, drop_rate=0.5)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def random_tokens(count: int) -> ListTokens:
    return ListTokens(np.random.default_rng(0).integers(0, 17, count).tolist())


@pytest.mark.parametrize("count", [2, 3, 8, 9, 10, 17, 50, 51])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_token_is_scored_once_with_the_context_of_its_window(model, count, stride) -> None:
    tokens = random_tokens(count)
    losses, scored_to = [], 1
    while scored_to < count:  # the plain form: one window at a time, one target at a time
        stop = min(8 if scored_to == 1 else scored_to + stride - 1, count - 1)
        start = max(0, stop - 8)
        with torch.no_grad():
            log_probabilities = model(torch.tensor([tokens.values[start:stop].tolist()])).log_softmax(-1)[0]
        losses += [-log_probabilities[i - start - 1, tokens.values[i]].item() for i in range(scored_to, stop + 1)]
        scored_to = stop + 1
    score = evaluate(model, tokens, block_size=8, stride=stride, batch_size=3)
    assert score.tokens == count - 1 == len(losses)
    assert score.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert score.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_a_uniform_model_has_the_perplexity_of_guessing() -> None:
    def uniform(token_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*token_ids.shape, 17)

    score = evaluate(uniform, random_tokens(40), block_size=8, stride=4, token_lengths=np.full(17, 2))
    assert score.perplexity == pytest.approx(17)
    assert score.bits_per_byte == pytest.approx(math.log2(17) / 2)
    assert perplexity(uniform, random_tokens(40), block_size=8) == pytest.approx(17)


def test_token_accuracy_counts_right_guesses() -> None:
    def next_is_plus_one(token_ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot((token_ids + 1) % 17, 17).float()

    tokens = ListTokens([0, 1, 2, 3, 9, 10, 11, 4, 5])
    assert evaluate(next_is_plus_one, tokens, block_size=4, stride=2).token_accuracy == pytest.approx(6 / 8)


def test_an_empty_split_has_no_score(model) -> None:
    assert evaluate(model, ListTokens([]), block_size=8, stride=4) is None
    assert evaluate(model, ListTokens([3]), block_size=8, stride=4) is None


def test_a_model_that_learned_a_passage_by_heart_recalls_it() -> None:
    torch.manual_seed(0)
    # A cycle of period 17: every token decides the next, so a short training is enough.
    tokens = ListTokens([(5 * i) % 17 for i in range(170)])
    model = GPT(GPTConfig(17, 16, n_layer=1, n_head=1, n_embd=32, drop_rate=0.0))
    untrained = verbatim_recall(model.eval(), tokens, passages=10, prompt_tokens=4, continuation_tokens=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = torch.tensor(np.stack([tokens.values[i : i + 17] for i in range(0, 150, 3)]).astype(np.int64))
    for _ in range(60):
        model(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = verbatim_recall(model.eval(), tokens, passages=10, prompt_tokens=4, continuation_tokens=8)
    assert (untrained, trained) == (0.0, 1.0)


def test_the_unigram_loss_is_the_entropy_of_the_tokens() -> None:
    assert unigram_loss(ListTokens([3, 3, 3, 3])) == 0
    assert unigram_loss(ListTokens([1, 2, 1, 5])) == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.1, 6.2, 0.83), "memorising"),
        ((0.1, 6.2, None), "memorising"),
        ((3.0, 3.3, 0.6), "memorising"),
        ((3.0, 3.3, 0.0), "generalising"),
        ((10.8, 10.8, 0.0), "underfitting"),
        ((7.9, 8.0, 0.0), "underfitting"),
        ((3.0, None, 0.0), "unknown"),
    ],
)
def test_the_verdict_names_what_the_numbers_mean(arguments, expected) -> None:
    assert verdict(*arguments, unigram_loss=6.5) == expected
