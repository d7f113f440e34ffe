"""The loss of a micro-batch, as an objective gives it, and what a step of many came to.

A micro-batch gives sums: `fit` adds the sums of all micro-batches and processes of a step and
divides once, so the gradient is that of one big batch (to 1e-7). The usual mean of means is not:
micro-batches hold different numbers of labels (relative error 2.3 seen, cosine 0.994).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

LEAST = 0.5  # nats: what is expected to be less is no measure; untrained teachers are at 0 to 0.4
Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class Part(Generic[Number]):
    """A component of a loss that is shown beside the total."""

    value: Number
    expected: Number | None = None  # what it would be if nothing were learned, where that is known


@dataclass
class Loss:
    """The loss of one micro-batch, as sums.

    Parts are shown divided by the weight of the step, counts as they are. Their names, and which
    parts have an expected value, are the same in every micro-batch of a step, on every process.
    """

    total: Tensor  # differentiable scalar
    weight: Tensor  # what the total is divided by, once per step: label tokens
    parts: Mapping[str, Part[Tensor]] = field(default_factory=dict)
    counts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What one step came to, the same on every rank."""

    loss: float  # per label token
    weight: float  # label tokens
    parts: Mapping[str, Part[float]]  # per label token
    counts: Mapping[str, float]
    grad_norm: float  # before clipping
    amount: float  # seconds of audio, or what else throughput counts, without padding
    stop: bool  # some rank was asked to stop
    unreadable: dict[str, str]  # files met by any rank that could not be read, and why
    highest: float  # gradient norm that would still have been followed
    suspects: list[str]  # ids in a dropped step; empty if the step was taken

    @property
    def taken(self) -> bool:
        """Whether the weights moved."""
        return self.finite and self.grad_norm <= self.highest

    @property
    def finite(self) -> bool:
        """Whether there was a loss and a gradient at all."""
        return self.weight > 0 and math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def detached(loss: Loss) -> Loss:
    """The numbers of a loss without its graph."""
    return Loss(
        loss.total.detach(),
        loss.weight.detach(),
        {
            name: Part(
                part.value.detach(), None if part.expected is None else part.expected.detach()
            )
            for name, part in loss.parts.items()
        },
        {name: count.detach() for name, count in loss.counts.items()},
    )


def shown(parts: Mapping[str, Part[float]]) -> dict[str, float]:
    """What a log shows: the parts by name, then `x_relative` of those that `relative` has."""
    values = {name: part.value for name, part in parts.items()}
    return values | {f"{name}_relative": share for name, share in relative(parts).items()}


def relative(parts: Mapping[str, Part[float]]) -> dict[str, float]:
    """The parts that are expected to be anything, as a share of that.

    A teacher that has learned nothing finds all symbols about equally likely: by that measure, of
    0.0001 nats, the KD loss of a student that learns from texts alone was 3,685.
    """
    return {
        name: part.value / part.expected
        for name, part in parts.items()
        if part.expected is not None and part.expected >= LEAST
    }
