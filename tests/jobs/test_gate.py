"""Gates: conditions on results, written as data."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import SpecError
from jobs.gate import explain_miss, parse_condition
from jobs.reading.pipeline_file import read_pipeline
from tests.jobs.test_worker import make_step, start


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
    assert (explain_miss({"x": condition}, {"x": value}) == "") is passes


def test_every_missed_condition_is_named_with_its_value() -> None:
    reason = explain_miss(
        {"wer": "<= 0.0", "verdict": "== PASSED"}, {"wer": 0.4, "verdict": "FAILED"}
    )
    assert reason.split("; ") == [
        "wer is 0.4, the gate asks for <= 0.0",
        "verdict is FAILED, the gate asks for == PASSED",
    ]


def test_a_value_that_cannot_be_compared_misses() -> None:
    assert "wer is null" in explain_miss({"wer": "<= 0.1"}, {"wer": None})


@pytest.mark.parametrize("text", ["", "0.1", "=< 1", "<= x", "<= 0.1 0.2"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"write a condition|compares numbers"):
        parse_condition(text)


@pytest.mark.parametrize(
    ("condition", "value", "passes"),
    [
        ("== true", True, True),
        ("== true", False, False),
        ("!= true", False, True),
        ("== false", False, True),
        ("== false", 0, False),
        ("!= false", None, False),
        ("<= 1", True, False),  # a boolean is no number
        ("!= FAILED", None, False),
        ("< inf", 1e300, True),
        ("< inf", math.nan, False),
    ],
)
def test_true_and_false_are_neither_numbers_nor_texts(
    condition: str, value: object, passes: bool
) -> None:
    assert (explain_miss({"x": condition}, {"x": value}) == "") is passes


def test_an_entry_that_the_result_does_not_have_is_named_with_those_it_has() -> None:
    reason = explain_miss({"acuracy": ">= 0.5"}, {"seconds": 1.5, "accuracy": 0.9})
    assert reason == (
        "the result has no 'acuracy' (it has seconds, accuracy): the gate asks for >= 0.5"
    )


def test_what_is_shown_is_what_was_written() -> None:
    assert (
        explain_miss({"ok": "== true"}, {"ok": "true"}) == 'ok is "true", the gate asks for == true'
    )
    assert (
        explain_miss({"ok": "== true"}, {"ok": False}) == "ok is false, the gate asks for == true"
    )
    assert explain_miss({"x": "< 1"}, {"x": math.nan}) == "x is nan, the gate asks for < 1.0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<= nan", "nothing is <= nan: write a number"),
        ("> true", "> compares numbers, and 'true' is none"),
        (0.1, 'such as "<= 0.1" or "== PASSED", not 0.1'),
        (True, "not true"),
        ("<= 1\n\n x", "write a condition"),
    ],
)
def test_a_condition_that_never_holds_or_is_no_text_is_refused(text: object, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse_condition(text)


@given(
    st.from_regex(r"\s*(<=|>=|==|!=|<|>)\s*\S+\s*", fullmatch=True),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
)
def test_every_condition_on_every_value_is_judged(text: str, value: object) -> None:
    try:
        parse_condition(text)
    except ValueError:
        return
    reason = explain_miss({"x": text}, {"x": value})
    assert reason == "" or reason.startswith("x is ")
    assert explain_miss({"y": text}, {"x": value}).startswith("the result has no 'y'")


@pytest.mark.parametrize(
    ("gate", "status", "words"),
    [
        ({"ok": "== true"}, 0, ""),
        ({"ok": "== false"}, 1, "ok is true, the gate asks for == false"),
        ({"accuracy": ">= 0.5"}, 1, "the result has no 'accuracy' (it has seconds, ok, loss)"),
        ({"loss": "<= 5"}, 1, "loss is null, the gate asks for <= 5.0"),
    ],
)
def test_a_step_is_judged_by_what_its_program_wrote_in_a_sentence(
    tmp_path: Path, gate: dict[str, str], status: int, words: str
) -> None:
    program = (
        """echo '{"ok": true, "loss": NaN}' > "$TRAINYARD_RESULT"; test "$${HOME}" = "$HOME" """
    )
    step = make_step(tmp_path, ["sh", "-c", program], gate=gate)
    process = start(step)
    _, said = process.communicate()
    assert process.returncode == status, said
    assert words in said and "Traceback" not in said
    assert status == 0 or step.failure()["cause"] == "gate_missed"


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"wer": "== PASSED"}, "wer is a number, and '== PASSED' is about a text"),
        ({"verdict": "<= 1"}, "verdict is a text, and '<= 1' is about a number"),
        ({"checks": "== true"}, "checks is no single value"),
        ({"accuracy": "<= 1"}, "no such result: valid are verdict, wer"),
        ({"wer": 0.1}, 'write a condition such as "<= 0.1" or "== PASSED", not 0.1'),
        ({"wer": True}, "not true"),
    ],
)
def test_a_gate_that_no_result_can_pass_is_refused_before_anything_runs(
    tmp_path: Path, gate: dict[str, object], words: str
) -> None:
    step = {"kind": "overfit", "settings": {"manifest": "m"}, "gate": gate}
    (tmp_path / "p.yaml").write_text(json.dumps({"steps": {"a": step}}))
    with pytest.raises(SpecError) as caught:
        read_pipeline(tmp_path / "p.yaml")
    (mistake,) = caught.value.mistakes
    assert words in mistake and f"steps.a.gate.{next(iter(gate))}: " in mistake


@pytest.mark.parametrize(
    ("other", "status", "words"),
    [
        ({"wer": 0.4}, 0, ""),
        ({"wer": 0.25}, 1, "wer is 0.3, the gate asks for <= 0.25"),
        ({"wer": None}, 1, "wer: <= compares numbers, and 'None' is none"),
        ({}, 1, "${alone.wer}: the result of alone has no 'wer'"),
    ],
)
def test_a_step_is_judged_beside_what_another_step_came_to(
    tmp_path: Path, other: dict[str, object], status: int, words: str
) -> None:
    make_step(tmp_path / "alone", ["true"]).write_result({"seconds": 1.0, **other})
    program = """echo '{"wer": 0.3}' > "$TRAINYARD_RESULT" """
    gate = {"wer": "<= ${alone.wer}"}
    step = make_step(tmp_path / "student", ["sh", "-c", program], gate=gate, needs=["alone"])
    process = start(step)
    _, said = process.communicate()
    assert process.returncode in ({0} if not status else {1, 2}), said
    assert words in said and "Traceback" not in said


TWO = {
    "alone": {"kind": "overfit", "settings": {"manifest": "m"}},
    "student": {"kind": "overfit", "settings": {"manifest": "m"}},
}


@pytest.mark.parametrize(
    ("needs", "gate", "words"),
    [
        (["alone"], {"wer": "<= ${alone.wer}", "verdict": "== ${alone.verdict}"}, ""),
        ([], {"wer": "<= ${alone.wer}"}, "student does not need alone: write needs: [alone]"),
        (["alone"], {"wer": "<= ${other.wer}"}, "no step 'other'"),
        (["alone"], {"wer": "<= ${alone.accuracy}"}, "overfit has no result 'accuracy'"),
        (
            ["alone"],
            {"wer": "== ${alone.verdict}"},
            "wer is a number, and '== ${alone.verdict}' is",
        ),
        (["alone"], {"wer": "<= ${alone.wer"}, "compares numbers, and '${alone.wer' is none"),
    ],
)
def test_a_gate_may_name_the_result_of_a_step_before_it(
    tmp_path: Path, needs: list[str], gate: dict[str, str], words: str
) -> None:
    steps = {**TWO, "student": {**TWO["student"], "needs": needs, "gate": gate}}
    (tmp_path / "p.yaml").write_text(json.dumps({"steps": steps}))
    if not words:
        assert read_pipeline(tmp_path / "p.yaml").step("student").gate == gate
        return
    with pytest.raises(SpecError) as caught:
        read_pipeline(tmp_path / "p.yaml")
    assert any(words in mistake for mistake in caught.value.mistakes), caught.value.mistakes
