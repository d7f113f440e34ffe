"""Gates: conditions on a step's result, written as data: `gate: {wer: "<= 0.0", verdict: "==
PASSED"}`, or beside another step's result: `gate: {wer: "<= ${alone.wer}"}`.

References are filled in before a gate is judged here.
"""

import json
import operator
import re
from collections.abc import Mapping
from typing import Any

Limit = float | bool | str
_OPERATORS = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}
_CONDITION = re.compile(r"\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
_BOOLEANS = {"true": True, "false": False}


def parse_condition(text: object) -> tuple[str, Limit]:
    """`<= 0.1` -> ("<=", 0.1), `== true` -> ("==", True); ValueError where it is no condition."""
    match = _CONDITION.fullmatch(text) if isinstance(text, str) else None
    if not match:
        given = repr(text) if isinstance(text, str) else _show_value(text)
        raise ValueError(f'write a condition such as "<= 0.1" or "== PASSED", not {given}')
    sign, word = match.groups()
    limit = _limit(word)
    if limit != limit:
        raise ValueError(f"nothing is {sign} {word}: write a number, such as {sign} 0.1")
    if not isinstance(limit, float) and sign not in ("==", "!="):
        raise ValueError(f"{sign} compares numbers, and {word!r} is none")
    return sign, limit


def _limit(word: str) -> Limit:
    if word in _BOOLEANS:
        return _BOOLEANS[word]
    try:
        return float(word)
    except ValueError:
        return word


def explain_miss(gate: Mapping[str, str], result: Mapping[str, Any]) -> str:
    """Why `result` misses the gate, in one line; empty where it passes.

    A value of another type (NaN or nothing at all for a number, text for true) misses every
    condition, and so does one that is not there, or that another step's result makes no limit.
    """
    reasons = []
    for name, text in gate.items():
        try:
            sign, limit = parse_condition(text)
        except ValueError as error:  # null, or text where numbers are compared
            reasons.append(f"{name}: {error}")
            continue
        asked = f"the gate asks for {sign} {_show_value(limit)}"
        if name not in result:
            reasons.append(f"the result has no {name!r} (it has {', '.join(result)}): {asked}")
        elif not holds(sign, result[name], limit):
            value = result[name]
            quoted = isinstance(value, str) and not isinstance(limit, str)
            shown = f'"{value}"' if quoted else _show_value(value)
            reasons.append(f"{name} is {shown}, {asked}")
    return "; ".join(reasons)


def holds(sign: str, value: Any, limit: Limit) -> bool:
    """Whether a value passes a condition."""
    comparable = type_of(value) == type_of(limit) and value == value
    return comparable and bool(_OPERATORS[sign](value, limit))


def type_of(value: object) -> str:
    """The type of a value as people call it: only values of one type are compared."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return "a text" if isinstance(value, str) else "no single value"


def _show_value(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
