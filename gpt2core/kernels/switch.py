"""Whether a training step on a CPU is computed by this package's own head, attention and dropout, or by torch's."""

import torch

_own = True


def use_own_kernels(own: bool) -> None:
    """For the whole process, like torch's switches of its backends."""
    global _own
    _own = own


def own_kernels_pay(device: torch.device) -> bool:
    """They are made for a CPU; a compiler makes its own."""
    return _own and device.type == "cpu" and not torch.compiler.is_compiling()
