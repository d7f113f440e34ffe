"""Values against a schema: pydantic's mistakes in our words, each at its line.

Unknown keys come with their place or the nearest valid name, missing ones with what they mean. A
reference stands for a value that is known later: only its type counts now, not its bounds.
"""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from jobs.reading.keys import about, fields_at, suggest_key
from jobs.reading.paths import Place, remove
from jobs.reading.yaml12 import Document

_Model = TypeVar("_Model", bound=BaseModel)
ANYTHING = "${anything}"  # a reference whose type is not known: no type mistake is reported for it


def validate(
    document: Document,
    model: type[_Model],
    raw: Any,
    place: Place,
    references: tuple[Place, ...] = (),
    beside: Mapping[str, type[BaseModel]] = MappingProxyType({}),
) -> _Model | None:
    """`raw` as a `model`, or None where it is none and the document has its mistakes.

    Keys that are not the model's are looked for in the blocks `beside` it, too.
    """
    if not isinstance(raw, dict):
        names = ", ".join(f"{name}: ..." for name in model.model_fields)
        document.mistake(place, f"write a mapping here ({names}), not {show_value(raw)}")
        return None
    value, errors = _checked(model, raw)
    excused = {at for item in errors if (at := _excuse(item, references))}
    wrong = [item for item in errors if not _excuse(item, references)]
    if excused and not wrong:
        value, wrong = _without(model, raw, excused)
    for item in wrong:
        at, message = _message(model, item, beside)
        document.mistake((*place, *at), message)
    return None if wrong else value


def _checked(model: type[_Model], raw: Any) -> tuple[_Model | None, list[Any]]:
    try:
        return model.model_validate_json(json.dumps(raw), strict=True), []
    except ValidationError as error:
        return None, list(error.errors())


def _excuse(item: Any, references: tuple[Place, ...]) -> Place | None:
    """The place of the reference that a mistake is about, if it may be none once that is known."""
    at = next((ref for ref in references if item["loc"][: len(ref)] == ref), None)
    of_type = item["type"].endswith(("_type", "_parsing"))
    if item["type"] == "extra_forbidden" or (of_type and item["input"] != ANYTHING):
        return None
    return at


def _without(model: type[_Model], raw: Any, places: AbstractSet[Place]) -> tuple[_Model, list[Any]]:
    """`raw` with the defaults in these places, and what is wrong elsewhere all the same: pydantic
    looks at a whole only where all of its parts are right.
    """
    value, errors = _checked(model, remove(raw, places))
    keys = {place[0] for place in places}
    wrong = [item for item in errors if item["loc"] and item["loc"][0] not in keys]
    if value is None:  # there is no default
        value = model.model_construct(**raw)
    return value, wrong


def _message(
    model: type[BaseModel], item: Any, beside: Mapping[str, type[BaseModel]]
) -> tuple[Place, str]:
    at: Place = tuple(item["loc"])
    if item["type"] == "extra_forbidden":
        key = str(at[-1])
        return at, f"unknown key {key!r}: {suggest_key(key, model, at[:-1], beside)}"
    if item["type"] == "missing":
        field = fields_at(model, at[:-1]).get(str(at[-1]))
        return at, f"missing: write {at[-1]}: ...{about(field) if field else ''}"
    message = item["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be greater", "write a number greater")
    message = message.replace("Input should be less", "write a number less")
    message = message.replace("Input should be", "write")
    given = "" if item["type"] == "value_error" else f", not {show_value(item['input'])}"
    return at, f"{message}{given}"


def show_value(value: Any) -> str:
    """A value as the file has it, shortened."""
    text = "nothing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
