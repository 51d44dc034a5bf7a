"""What weights may claim: no more than is stored of them, however often or in whatever shape it is named."""

from collections.abc import Mapping

import torch
from torch import Tensor

from gpt2core.config import GPTConfig
from gpt2core.errors import UserError

# Biases and tied tables that a source need not have come on top of twice what is stored.
_FREE_PARAMETERS = 1_000_000


def stored_numbers(tensors: Mapping[str, Tensor]) -> int:
    """Numbers in the storages of the tensors, each storage counted once. Sparse and meta tensors store none."""
    sizes: dict[int, int] = {}
    for tensor in tensors.values():
        if tensor.layout == torch.strided and not tensor.is_meta:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
    return sum(sizes.values())


def check_parameters(config: GPTConfig, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raises UserError where `config` describes a far larger model than is stored, before memory for it is allocated.

    `origin` is where the sizes stand. A layer has a cost of its own beside its numbers, so there cannot be more of them
    than there are tensors.
    """
    stored = stored_numbers(tensors)
    if config.n_layer > len(tensors) or config.num_parameters > 2 * stored + _FREE_PARAMETERS:
        raise UserError(
            f"{origin} describes {config.num_parameters:,} parameters in {config.n_layer:,} layers, and there are "
            f"{stored:,} in {len(tensors):,} tensors; fetch or save it again."
        )
