"""Which gradients are too large to follow: judged by the run's own past, never for long. No torch.

What is not finite is dropped always (`lact_asr.steps`) and what is merely large is clipped. A batch
far above the run's usual norm can be dropped on top: at most three in a row, for then it is the
run that has changed. A fixed limit knows nothing of the run: a healthy model has norms of 5 to 18
while it learns, and the founding notes' limit of 10 dropped 1,098 of 1,100 steps.

The norm is that of the averaged gradients, the same number on every rank: all decide alike.
"""

import math

from pydantic import Field

from lact_asr.frozen import Frozen

IN_A_ROW = 3  # spikes dropped before one is followed
MEMORY = 0.98  # of the running mean of the norms, per step
WINDOW = 1000  # steps in which
SHARE = 0.05  # so many may be dropped


class GuardConfig(Frozen):
    """Steps that are not taken although loss and gradient are finite."""

    skip_ratio: float | None = Field(
        None,
        gt=1,
        description="Drop a step whose gradient norm is more than so many times the running mean, "
        "at most three in a row; null is never",
    )
    skip_above: float | None = Field(
        None,
        gt=0,
        description="Drop every step whose gradient norm, per label token and before clipping, is "
        "above this (the notes' rule, with 10); a healthy model may never come below it; null is "
        "never",
    )


def limit(config: GuardConfig, typical: float, spikes: int) -> float:
    """The largest norm that is followed, after so many spikes in a row; `typical` 0 is no past."""
    highest = math.inf if config.skip_above is None else config.skip_above
    if config.skip_ratio is None or not typical or spikes >= IN_A_ROW:
        return highest
    return min(highest, config.skip_ratio * typical)


def remembered(typical: float, norm: float, highest: float) -> float:
    """The running mean after a step; a spike counts no more than the limit it broke."""
    if not math.isfinite(norm):
        return typical
    norm = min(norm, highest)
    return MEMORY * typical + (1 - MEMORY) * norm if typical else norm


def recent(dropped: list[int], step: int) -> list[int]:
    """Those of the dropped steps that lie in the window ending with `step`."""
    return [each for each in dropped if each > step - WINDOW]
