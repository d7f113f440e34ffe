"""Values inside values: every scalar of a document with its place, and a new value at a place."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

Place = tuple[str | int, ...]  # the way to a value: ("steps", "train", "needs", 0)


def walk(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value that is neither a mapping nor a list, with its place."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from walk(child, (*place, key))
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield from walk(child, (*place, index))
    else:
        yield place, value


def replace(value: Any, place: Place, new: Any) -> Any:
    """A copy of `value` with `new` at `place`; missing mappings on the way are made."""
    if not place:
        return new
    head, rest = place[0], place[1:]
    if isinstance(value, (list, tuple)):
        return [replace(item, rest, new) if i == head else item for i, item in enumerate(value)]
    value = value if isinstance(value, dict) else {}
    return {**value, head: replace(value.get(head), rest, new)}


def remove(value: Any, places: AbstractSet[Place], place: Place = ()) -> Any:
    """A copy of `value` without what is at these places."""
    if isinstance(value, dict):
        inner = {key: (*place, key) for key in value}
        return {k: remove(value[k], places, at) for k, at in inner.items() if at not in places}
    if isinstance(value, (list, tuple)):
        items = [(child, (*place, index)) for index, child in enumerate(value)]
        return [remove(child, places, at) for child, at in items if at not in places]
    return value
