"""What a step's result can be, by the type that its kind declares for it: samples for references
that name it, and gates that every such result would pass, or none.
"""

import math
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from jobs import gate
from jobs.reading.validation import ANYTHING

_SAMPLES: dict[str, Any] = {"string": "x", "integer": 1, "number": 0.5, "boolean": True}


def sample_of(result: type[BaseModel], field: str, inside: bool = False) -> Any:
    """A value as JSON holds it of a result's type; `inside` a mapping, that of its values."""
    schema = _schema_of(result, field)
    if inside:
        schema = schema.get("additionalProperties", {})
    if schema.get("type") in ("array", "object"):
        return [] if schema["type"] == "array" else {}
    return _SAMPLES.get(schema.get("type", ""), ANYTHING)


def _schema_of(result: type[BaseModel], field: str) -> Mapping[str, Any]:
    """JSON Schema of a result; what may also be null is taken as there."""
    schema: Mapping[str, Any] = result.model_json_schema()["properties"][field]
    types = [each for each in schema.get("anyOf", []) if each.get("type") != "null"]
    return types[0] if len(types) == 1 else schema


def _may_be_null(result: type[BaseModel], field: str) -> bool:
    """Whether a result may be nothing, which misses every gate."""
    return type(None) in get_args(result.model_fields[field].annotation)


def decided_already(result: type[BaseModel], field: str, condition: str) -> str:
    """Why a condition says nothing about a result, or empty text.

    Numbers are 0 or more in every result, and rates are fractions of 1: whoever writes
    `wer: "<= 15"` means 15 %, and would let everything pass.
    """
    schema = _schema_of(result, field)
    sign, limit = gate.parse_condition(condition)
    if schema.get("unit") == "fraction" and isinstance(limit, float) and 1 < limit < math.inf:
        meant = f"write {limit / 100:g} for {limit:g} %"
        return f"{field} is a fraction, and {limit:g} is {limit:.0%}: {meant}"
    passing = [gate.holds(sign, value, limit) for value in _possible(schema, limit)]
    if passing and not any(passing):
        return f"no result is {condition.strip()}: {field} is {_words(schema)}"
    if passing and all(passing) and not _may_be_null(result, field):
        return f"every result is {condition.strip()}: {field} is {_words(schema)}"
    return ""


def _possible(schema: Mapping[str, Any], limit: gate.Limit) -> list[Any]:
    """Results that are enough to see what a condition does; none where there is no telling."""
    if "enum" in schema:
        return list(schema["enum"])
    if schema.get("type") == "boolean":
        return [False, True]
    if schema.get("type") not in ("number", "integer") or not isinstance(limit, float):
        return []
    around = [math.nextafter(limit, -math.inf), limit, math.nextafter(limit, math.inf)]
    if schema["type"] == "integer" and math.isfinite(limit):
        around = [math.floor(limit) + step for step in (-1, 0, 1, 2)]
    return [value for value in (0, *around, math.inf) if value >= 0]


def _words(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if schema["type"] == "boolean":
        return "true or false"
    return "a whole number, 0 or more" if schema["type"] == "integer" else "0 or more"
