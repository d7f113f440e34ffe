"""Checks with exact answers: which utterances CTC can learn at all, what an untrained model's loss
must be, and where a number stopped being finite.
"""

import math
import operator
from collections.abc import Sequence

import torch
from torch import nn

from lact_asr.sharding import full


def adjacent_repeats(labels: Sequence[int]) -> int:
    """Labels equal to the one before: CTC must put a blank between them."""
    return sum(map(operator.eq, labels, labels[1:]))


def frames_needed(labels: Sequence[int]) -> int:
    """The fewest output frames with a CTC path for these labels; with one less the loss is inf."""
    return len(labels) + adjacent_repeats(labels)


def uniform_ctc_loss(frames: int, labels: Sequence[int], vocabulary_size: int) -> float:
    """CTC loss in nats of a model that gives all symbols (blank included) the same probability.

    T ln V - ln C(T + U - R, 2U) for T frames, U labels and R adjacent repeats: the number of paths
    is a binomial coefficient. An untrained model starts near this value.
    """
    if frames < frames_needed(labels):
        return math.inf
    chosen = 2 * len(labels)
    places = frames + len(labels) - adjacent_repeats(labels)
    paths = math.lgamma(places + 1) - math.lgamma(chosen + 1) - math.lgamma(places - chosen + 1)
    return frames * math.log(vocabulary_size) - paths


def non_finite(module: nn.Module, gradients: bool = False) -> list[str]:
    """Names of the parameters that hold a NaN or an infinity, or whose gradients do."""
    tensors = (
        (name, parameter.grad if gradients else parameter)
        for name, parameter in module.named_parameters()
    )
    return [
        name
        for name, value in tensors
        if value is not None and not torch.isfinite(full(value)).all()
    ]
