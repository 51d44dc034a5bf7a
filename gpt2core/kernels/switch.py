"""Where this package's head, attention and dropout kernels are faster than torch's."""

import torch


def own_kernels_are_faster(device: torch.device) -> bool:
    """They are written for an eager CPU step; a compiler generates its own. The caller adds the user's choice."""
    return device.type == "cpu" and not torch.compiler.is_compiling()
