"""Gates: conditions on results, written as data."""

import math

import pytest

from jobs.gate import missed, parse_condition


@pytest.mark.parametrize(
    ("condition", "value", "passes"),
    [
        ("<= 0.0", 0.0, True),
        ("<= 0.0", 0.001, False),
        ("< 5", 5, False),
        (">= 0.5", 0.5, True),
        ("> 0.5", 0.5, False),
        ("== PASSED", "PASSED", True),
        ("== PASSED", "MARGINAL", False),
        ("!= FAILED", "PASSED", True),
        ("<= 1", math.nan, False),
        ("!= 1", math.nan, False),
    ],
)
def test_a_value_passes_or_misses(condition: str, value: float | str, passes: bool) -> None:
    assert (missed({"x": condition}, {"x": value}) == "") is passes


def test_every_missed_condition_is_named_with_its_value() -> None:
    reason = missed({"wer": "<= 0.0", "verdict": "== PASSED"}, {"wer": 0.4, "verdict": "FAILED"})
    assert reason.split("; ") == [
        "wer is 0.4, the gate asks for <= 0.0",
        "verdict is FAILED, the gate asks for == PASSED",
    ]


def test_a_value_that_cannot_be_compared_misses() -> None:
    assert "wer is None" in missed({"wer": "<= 0.1"}, {"wer": None})


@pytest.mark.parametrize("text", ["", "0.1", "=< 1", "<= x", "<= 0.1 0.2"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a condition|compares numbers"):
        parse_condition(text)
