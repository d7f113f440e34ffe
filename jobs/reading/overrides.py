"""`--set step.setting=value`, laid over what a file says."""

import re
from collections.abc import Sequence
from typing import Any

from jobs.errors import nearest
from jobs.reading.file_schema import StepFile
from jobs.reading.paths import Place, replace
from jobs.reading.validation import show_value
from jobs.reading.yaml12 import DEEPEST, Document, parse


def override(document: Document, text: str) -> None:
    """Lay one `--set` over the document; where it cannot be, that is a mistake and nothing else."""
    path, equals, value = text.partition("=")
    keys = path.split(".")
    source = f"--set {text}"
    if not equals or len(keys) < 2 or not all(keys):
        document.mistakes.append(f"{source}: write step.setting=value")
        return
    given = parse(value, source)
    inside = keys[1] in StepFile.model_fields
    wanted = ["steps", keys[0], *([] if inside else ["settings"]), *keys[1:]]
    try:
        place = _place_of(document.value, wanted)
    except ValueError as error:
        given.mistakes.append(f"{source}: {error}")
    document.mistakes += given.mistakes
    if given.mistakes:
        return
    document.value = replace(document.value, place, given.value)
    kept = {at: line for at, line in document.places.items() if at[: len(place)] != place}
    document.places = {**kept, place: source}


def _place_of(value: Any, keys: Sequence[str]) -> Place:
    """Where the keys of a `--set` lead; ValueError where that is inside something without parts."""
    if len(keys) > DEEPEST:
        raise ValueError(f"too many dots: at most {DEEPEST} values inside each other")
    steps = value.get("steps") if isinstance(value, dict) else None
    names = list(steps) if isinstance(steps, dict) else []
    if keys[1] not in names:
        raise ValueError(f"no step {keys[1]!r}: {nearest(keys[1], names)}")
    place: Place = ()
    for depth, key in enumerate(keys):
        if isinstance(value, list):
            index = _index(key, value, keys[:depth])
            place, value = (*place, index), value[index]
        elif value is None or isinstance(value, dict):
            place, value = (*place, key), (value or {}).get(key)
        else:
            at = ".".join(keys[:depth])
            raise ValueError(
                f"{at} is {show_value(value)}, which has nothing inside: write {at}=value"
            )
    return place


def _index(key: str, values: Sequence[Any], keys: Sequence[str]) -> int:
    """The place in a list that a key means (ValueError where there is none)."""
    index = int(key) if re.fullmatch("[0-9]{1,9}", key) else len(values)
    if index < len(values):
        return index
    numbers = f"a number from 0 to {len(values) - 1} instead of {key!r}, or " if values else ""
    raise ValueError(
        f"{'.'.join(keys)} is a list of {len(values)}: write {numbers}the whole list: [a, b]"
    )
