"""How often to save: from what a checkpoint costs, and from how often a run is cut.

J. W. Young (1974) and J. T. Daly (2006): a checkpoint that holds training up for C seconds, and a
failure every M seconds on average, lose least time together about every sqrt(2 C M) seconds.
Published times between failures are 7.9 h with 1,024 GPUs and 1.8 h with 16,384 (arXiv 2410.21680);
preemption on a shared cluster comes on top.
"""

import math
from dataclasses import dataclass

FIRST = 100  # steps before the first checkpoint of a start: by then the time of a step is known
_OTHER = 1.5  # times as long or short as the present interval is another one


@dataclass
class Meter:
    """What the newest checkpoint has cost, in seconds."""

    save: float = 0.0  # that training waits for a checkpoint
    write: float = 0.0  # until it is on the disk: no two are written at once


def best_seconds(save: float, failure: float) -> float:
    """Seconds of work between two checkpoints (Daly 2006, equation 37)."""
    if save >= 2 * failure:
        return failure
    part = save / (2 * failure)
    return math.sqrt(2 * save * failure) * (1 + math.sqrt(part) / 3 + part / 9) - save


def choose(cost: Meter, step: float, failure: float, present: int) -> int:
    """Steps, of so many seconds each, between two checkpoints; the present ones, 0 at first, where
    they are about right.
    """
    seconds = max(best_seconds(cost.save, failure), cost.write)
    steps = max(1, round(seconds / step))
    return present if present / _OTHER <= steps <= present * _OTHER else steps
