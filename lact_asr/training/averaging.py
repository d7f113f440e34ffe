"""Means of a model's weights over training, which generalize better than the last ones.

A running mean (EMA) goes along with the training and is what is validated and kept as the best
model; the optimizer goes on with the weights as they are. At the end the last checkpoints can be
averaged as well, and win if they are better.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lact_asr.distributed.fsdp import like, local


class Average:
    """Other values for a model's weights, perhaps following them."""

    def __init__(
        self, model: nn.Module, decay: float = 0.0, values: Mapping[str, Tensor] | None = None
    ) -> None:
        """The given values, or a running mean; without decay and values `in_force` does nothing."""
        self.model, self.decay = model, decay
        self.values: dict[str, Tensor] = {}
        if decay or values:
            self.load(values or {})

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take these values, and the model's where there are none."""
        self.values = {
            name: like(values.get(name, weight.data), weight).to(weight.device, copy=True)
            for name, weight in self._weights()
        }

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the weights after a step; at first with a shorter memory, for they were random.

        The running mean forgets with the given decay per step, at step s no slower than in s / 9
        steps.
        """
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            now = [local(weight.data) for _, weight in self._weights()]
            torch._foreach_lerp_([local(each) for each in self.values.values()], now, 1 - decay)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Inside, the model has these weights; behind it, its own."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """In place: a split model gathers its weights from the memory that they were split into."""
        for name, weight in self._weights() if self.values else ():
            present, other = local(weight.data), local(self.values[name])
            kept = present.clone()
            present.copy_(other)
            other.copy_(kept)

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and running statistics; a counter has no mean."""
        for name, value in self.model.state_dict(keep_vars=True).items():
            if value.is_floating_point():
                yield name, value


def mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts of one model, added up in float64; counters are the last one's."""
    return {
        name: torch.stack([state[name].double().cpu() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[-1].items()
    }
