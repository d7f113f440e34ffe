"""Whether audio is what a teacher heard: how loud it is, quarter by quarter.

A checksum of samples would not do: at a changed speed they differ in the last digits from one
device to another. Other audio of the same length, or the same amplified, does not pass.

Shapes: B batch, N samples.
"""

from collections.abc import Sequence

from torch import Tensor

PARTS = 4
UNIT = 1e-6  # of the numbers, as a share of full scale
TOLERANCE = 1e-3  # of a number


def loudness(waves: Tensor, lengths: Sequence[int]) -> list[list[int]]:
    """The mean size of the samples in each quarter of waves [B,N] of these lengths."""
    quarters = [
        [part.abs().mean() if len(part) else part.sum() for part in wave[:length].chunk(PARTS)]
        for wave, length in zip(waves.float(), lengths, strict=True)
    ]
    return [[round(float(part) / UNIT) for part in each] for each in quarters]


def alike(now: Sequence[int], then: Sequence[int]) -> bool:
    """Whether two waves may be the same."""
    pairs = zip(now, then, strict=True)
    return all(abs(one - other) <= 2 + TOLERANCE * max(one, other) for one, other in pairs)
