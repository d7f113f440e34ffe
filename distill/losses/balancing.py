"""How much each taught loss counts beside the student's own: as set, by size, or as learned.

`static` multiplies by the weights that are set. `ema` brings every loss to the size of the task's
first, by their running means: a weight of 0.7 then is a share of 0.7 of the task's size, whatever
the units (the original framework kept such means and never used them). `uncertainty` learns
a scale per loss, exp(-s) L / 2 + s / 2 (Kendall et al. 2018), its rate ten times the student's.

The task's loss is never touched, so that validation losses stay comparable. Everything is kept in
buffers and parameters, and so in checkpoints; means come from sums over all ranks.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

MEMORY = 0.99  # of the running means, per step
SCALES_RATE = 10.0  # of learned scales, as a multiple: at the student's not there in 600 steps
BOUND = 1e3  # largest factor, and the inverse of the smallest


class Balancer(nn.Module):
    """Weights of losses that are taught beside one that is not."""

    means: Tensor  # of each loss, the task's first

    def __init__(self, names: Sequence[str], kind: str) -> None:
        super().__init__()
        self.names, self.kind = list(names), kind
        if kind == "ema":
            self.register_buffer("means", torch.zeros(1 + len(names)))
        if kind == "uncertainty":
            self.scales = nn.Parameter(torch.zeros(len(names)))

    def forward(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], labels: Tensor
    ) -> dict[str, Tensor]:
        """What each loss, a sum over so many labels, adds to the total; some may be idle."""
        if self.kind == "uncertainty":
            return {
                name: weights[name] * (torch.exp(-scale) * losses[name] / 2 + labels * scale / 2)
                for name, scale in zip(self.names, self.scales, strict=True)
                if name in losses
            }
        factors = dict(zip(self.names, self.factors(), strict=True))
        present = [name for name in self.names if name in losses]
        return {name: weights[name] * factors[name] * losses[name] for name in present}

    def factors(self) -> Tensor:
        """What multiplies each loss beside its weight, in the order of names."""
        if self.kind == "uncertainty":
            return torch.exp(-self.scales.detach()) / 2
        if self.kind == "static":
            return torch.ones(len(self.names))
        means = self.means  # they start from 0, which their ratios do not show
        factors = (means[0] / means[1:].clamp_min(1e-30)).clamp(1 / BOUND, BOUND)
        return factors.where(means[0] > 0, 1.0)

    @torch.no_grad()
    def observe(self, task: float, losses: Mapping[str, float]) -> None:
        """The losses of a step that was taken, over all ranks; what is idle keeps its mean.

        A loss that sets in later begins as if its ratio to the task had been the same before.
        """
        if self.kind != "ema":
            return
        self.means[0].lerp_(torch.full_like(self.means[0], task), 1 - MEMORY)
        for place, name in enumerate(self.names, start=1):
            if name in losses:
                mean = self.means[place]
                value = torch.full_like(mean, losses[name])
                begun = value * self.means[0] / task if task else 0 * value
                mean.copy_(torch.where(mean == 0, begun, mean.lerp(value, 1 - MEMORY)))
