"""What the values in a model cover: for `lact_asr.diagnosis.diagnose`, collected while a batch
passes.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Range:
    """What a set of values covers; everything over the finite ones."""

    low: float = math.inf
    high: float = -math.inf
    squares: float = 0.0
    count: int = 0
    broken: int = 0  # NaN or infinite

    def add(self, x: Tensor) -> None:
        """Take in more values."""
        x = x.detach().float().flatten()
        finite = x[torch.isfinite(x)]
        self.broken += len(x) - len(finite)
        self.count += len(x)
        if len(finite):
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))
            self.squares += float(finite.double().square().sum())

    @property
    def rms(self) -> float:
        """Root of the mean square."""
        return math.sqrt(self.squares / max(self.count - self.broken, 1))

    def wrong(self, limit: float) -> str:
        """What is wrong with these values; empty if nothing is."""
        if self.broken:
            return f"{self.broken:,} of {self.count:,} values are not finite"
        largest = max(abs(self.low), abs(self.high)) if self.count else 0.0
        return f"a value of {largest:.3g}, limit {limit:g}" if largest > limit else ""

    def numbers(self) -> dict[str, float | int | None]:
        """For a report: null where nothing was finite."""
        some = self.count > self.broken
        return {
            "min": self.low if some else None,
            "max": self.high if some else None,
            "rms": self.rms if some else None,
            "values": self.count,
            "not_finite": self.broken,
        }


@dataclass
class Row:
    """One module: what came out of it, the gradient that came back, and its own parameters."""

    module: str
    kind: str
    activations: Range = field(default_factory=Range)
    gradients: Range = field(default_factory=Range)
    weights: Range = field(default_factory=Range)
    weight_gradients: Range = field(default_factory=Range)

    def numbers(self) -> dict[str, Any]:
        """As plain data; what was not met is left out."""
        ranges = {name: getattr(self, name) for name in RANGES}
        met = {name: value.numbers() for name, value in ranges.items() if value.count}
        return {"module": self.module, "kind": self.kind, **met}


RANGES = ("activations", "gradients", "weights", "weight_gradients")
