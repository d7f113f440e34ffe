"""A few of many, evenly spread and the same ones every time."""


def spread(size: int, count: int) -> list[int]:
    """`count` different places of a list from its first to its last, or all that there are."""
    if count >= size or count < 2:
        return list(range(min(size, count)))
    return [number * (size - 1) // (count - 1) for number in range(count)]
