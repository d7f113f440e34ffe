"""A few of many, evenly spread and the same ones every time."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` different items from the first to the last, or all that there are."""
    if count >= len(items) or count < 2:
        return list(items[:count])
    return [items[number * (len(items) - 1) // (count - 1)] for number in range(count)]
