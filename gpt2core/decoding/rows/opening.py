"""Which rows decode a model."""

from collections.abc import Callable

from torch import Tensor

from gpt2core.decoding.packed.model import PackedGPT
from gpt2core.decoding.packed.policy import fastest
from gpt2core.decoding.rows.branching import BranchingRows
from gpt2core.decoding.rows.cached import CachedRows, PastBlockSize, PlainRows, Rows, SearchRows
from gpt2core.decoding.rows.graphed import GraphedRows, can_graph
from gpt2core.model import GPT


def open_rows(model: Callable[[Tensor], Tensor], max_length: int, past_block_size: PastBlockSize = "refuse") -> Rows:
    """Rows for a model; only a GPT has a cache. `max_length` is the most tokens a row will hold."""
    if isinstance(model, GPT) and can_graph(model):
        return GraphedRows(model, max_length, past_block_size)
    if isinstance(model, GPT | PackedGPT):
        return CachedRows(model, max_length, past_block_size)
    return PlainRows(model)


def open_search_rows(
    model: Callable[[Tensor], Tensor], prompt_length: int, max_length: int, copies: int, past_block_size: PastBlockSize
) -> SearchRows:
    """Rows for a search: each prompt gets `copies` of them, which then take one another's place."""
    if isinstance(model, GPT | PackedGPT) and max_length <= model.config.block_size:
        packed = fastest(model, max_length - prompt_length)
        if isinstance(packed, PackedGPT):
            return BranchingRows(packed, max_length, copies)
    return open_rows(model, max_length, past_block_size)
