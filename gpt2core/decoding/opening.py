"""Which rows decode a model."""

from collections.abc import Callable

from torch import Tensor

from gpt2core.decoding.graphed_rows import GraphedRows, can_graph
from gpt2core.decoding.packed import PackedGPT
from gpt2core.decoding.rows import CachedRows, PastBlockSize, PlainRows, Rows
from gpt2core.model import GPT


def open_rows(
    model: GPT | PackedGPT | Callable[[Tensor], Tensor], max_length: int, past_block_size: PastBlockSize = "refuse"
) -> Rows:
    """Rows for a model; only a GPT has a cache. `max_length` is the most tokens a row will hold."""
    if isinstance(model, GPT) and can_graph(model):
        return GraphedRows(model, max_length, past_block_size)
    if isinstance(model, GPT | PackedGPT):
        return CachedRows(model, max_length, past_block_size)
    return PlainRows(model)
