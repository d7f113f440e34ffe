"""Which label sequences CTC can learn at all, and what an untrained model's loss must be."""

import math
import operator
from collections.abc import Sequence


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
