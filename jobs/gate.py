"""Gates: conditions on a step's result, written as data: `gate: {wer: "<= 0.0", verdict: "==
PASSED"}`.
"""

import operator
import re
from collections.abc import Mapping
from typing import Any

_OPERATORS = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}
_CONDITION = re.compile(r"^\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*$")


def parse_condition(text: str) -> tuple[str, float | str]:
    """`<= 0.1` -> ("<=", 0.1); ValueError where it is no condition."""
    match = _CONDITION.match(text)
    if not match:
        raise ValueError(f'write a condition such as "<= 0.1" or "== PASSED", not {text!r}')
    sign, limit = match.groups()
    try:
        return sign, float(limit)
    except ValueError:
        if sign not in ("==", "!="):
            raise ValueError(f"{sign} compares numbers, and {limit!r} is none") from None
        return sign, limit


def missed(gate: Mapping[str, str], result: Mapping[str, Any]) -> str:
    """Why `result` misses the gate, in one line; empty where it passes.

    What is not a number (NaN, nothing at all) misses every condition on numbers.
    """
    reasons = []
    for name, text in gate.items():
        sign, limit = parse_condition(text)
        value = result[name]
        if not _holds(sign, value, limit):
            reasons.append(f"{name} is {value}, the gate asks for {sign} {limit}")
    return "; ".join(reasons)


def _holds(sign: str, value: Any, limit: float | str) -> bool:
    if isinstance(limit, float) and (not isinstance(value, (int, float)) or value != value):
        return False
    return bool(_OPERATORS[sign](value, limit))
