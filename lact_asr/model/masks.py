"""Masks of what is inside a length."""

import torch
from torch import Tensor


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Boolean mask [B, size], True inside each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
