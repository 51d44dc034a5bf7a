"""The largest of very many numbers: what `torch.topk` and `argmax` give, which take many times as long as `amax`.

Shapes: B rows, M numbers of each, K wanted.
"""

import torch
from torch import Tensor

# A row is looked at in chunks, of which only those with the largest are looked at again.
_CHUNK = 256
_MIN_CHUNKS = 8  # for each number wanted; below, looking for the chunks does not pay


def largest(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of numbers (B, M), largest first, and their places; each (B, K).

    The K largest lie in the K chunks whose largest are largest. Where numbers tie, `torch.topk` decides.
    """
    if numbers.device.type != "cpu" or numbers.shape[1] // _CHUNK < _MIN_CHUNKS * (count + 1):
        return _by_torch(numbers, count)
    best = _largest_of_chunks(numbers).topk(count + 1).indices  # (B, K + 1): one more, to see whether the last ties
    places = _places_to_look_at(best, numbers.shape[1])
    values, index = numbers.gather(1, places).topk(count + 1)
    if not bool((values[:, :-1] > values[:, 1:]).all()):  # a tie, or what is no number
        return _by_torch(numbers, count)
    return values[:, :count], places.gather(1, index[:, :count])


def place_of_largest(numbers: Tensor) -> Tensor:
    """The place (B,) of the largest of numbers (B, M), where several tie the first, as `argmax` has it."""
    if numbers.device.type != "cpu" or numbers.shape[1] // _CHUNK < _MIN_CHUNKS:
        return numbers.argmax(-1)
    best = _largest_of_chunks(numbers).argmax(-1, keepdim=True)  # (B, 1)
    places = _places_to_look_at(best, numbers.shape[1])
    return places.gather(1, numbers.gather(1, places).argmax(-1, keepdim=True))[:, 0]


def _largest_of_chunks(numbers: Tensor) -> Tensor:
    """The largest (B, M // _CHUNK) of each whole chunk of numbers (B, M)."""
    chunks = numbers.shape[1] // _CHUNK
    return numbers[:, : chunks * _CHUNK].unflatten(1, (chunks, _CHUNK)).amax(-1)


def _places_to_look_at(chunks: Tensor, length: int) -> Tensor:
    """The places of `length` numbers that are in chunks (B, C) or after the last whole one, (B, C * _CHUNK + rest)."""
    inside = chunks[..., None] * _CHUNK + torch.arange(_CHUNK)
    rest = torch.arange(length // _CHUNK * _CHUNK, length).expand(len(chunks), -1)
    return torch.cat([inside.flatten(1), rest], dim=1)


def _by_torch(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, places = numbers.topk(count)
    return values, places
