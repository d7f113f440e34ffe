"""Small things brought to a device without a wait for what it is at.

A plain copy from the CPU to a GPU returns only when all that the GPU was given before is done:
inside a step the GPU then stands still until the next kernels reach it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device; page-locked memory is read while both go on."""
    if device.type == "cuda" and values.is_cpu:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def made(values: Sequence[float], device: torch.device) -> Tensor:
    """Numbers as a float64 vector: each is an argument of its kernel, and nothing is copied."""
    filled = [torch.full((), each, dtype=torch.float64, device=device) for each in values]
    return torch.stack(filled)
