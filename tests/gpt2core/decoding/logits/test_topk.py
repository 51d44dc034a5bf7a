"""The largest of many numbers are those of torch.topk, in its order, ties and all."""

import pytest
import torch

from gpt2core.decoding.logits.topk import fast_argmax, fast_topk


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("count", [1, 2, 10, 30])
@pytest.mark.parametrize("length", [5, 300, 50_257, 100_001])
@pytest.mark.parametrize("kind", ["apart", "ties", "ruled out", "no numbers", "ascending"])
def test_the_largest_are_those_of_topk(length: int, count: int, kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    numbers = torch.randn(3, length)
    if kind == "ties":
        numbers = (numbers * 1000).round() / 1000
    elif kind == "ruled out":
        numbers[torch.rand(3, length) < 0.9999] = -torch.inf
    elif kind == "no numbers":
        numbers[0, torch.randint(length, (3,))] = torch.nan
    elif kind == "ascending":  # all of the largest in the last chunk and what follows it
        numbers = numbers.sort().values
    count = min(count, length)
    values, places = fast_topk(numbers, count)
    expected = numbers.topk(count)
    assert torch.equal(values.nan_to_num(7.0), expected.values.nan_to_num(7.0))
    assert torch.equal(places, expected.indices)
    assert torch.equal(fast_argmax(numbers), numbers.argmax(-1))
