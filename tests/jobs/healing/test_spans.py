"""Where seconds went: against numbers counted by hand, and for any records at all."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.healing.spans import (
    SPENT,
    Allocation,
    Mark,
    Recovery,
    Span,
    Start,
    frontiers,
    recoveries,
    spans,
    starts,
    steps_replayed,
    totals,
)
from lact_asr.training.clock import PHASES, metric


def started(time: float, word: str = "started", **facts: Any) -> dict[str, Any]:
    return {"time": time, "event": word, "host": "n1", "job": "7", "restart": 0, **facts}


def line(time: float, step: int, **seconds: float) -> dict[str, Any]:
    """A line of metrics of a training."""
    spent = {metric(phase): seconds.get(phase, 0.0) for phase in PHASES}
    return {"time": time, "step": step, **spent}


# Allocated at 100. First word at 103, first step begun at 110. Steps of 1 s, a line every 5 steps,
# a checkpoint of 2 s after step 10, then 5 more steps, and a sixth that no line tells of.
FIRST_EVENTS = [
    started(103.0),
    {"time": 122.0, "event": "checkpoint", "job": "7", "step": 10},
]
FIRST_LINES = [
    line(115.0, 5, useful=4.5, stalled=0.5),
    line(120.0, 10, useful=5),
    line(127.0, 15, useful=5, saving=2),
]
# Killed at 128. The next start's first word comes at 140, and it goes on from step 10 at 148: a
# line after step 15, one after a validation of 3 s, one after step 20, then its end.
SECOND_EVENTS = [
    started(140.0, "resumed", restart=1),
    {"time": 147.0, "event": "resumed", "job": "7", "step": 10},
    {"time": 166.0, "event": "finished", "job": "7"},
]
SECOND_LINES = [
    line(153.0, 15, useful=5),
    line(156.0, 15, validating=3),
    line(161.0, 20, useful=4, stalled=1),
    line(164.0, 20, validating=2, saving=1),
]
EVENTS, LINES = [*FIRST_EVENTS, *SECOND_EVENTS], [*FIRST_LINES, *SECOND_LINES]


def nonzero(found: list[Span]) -> dict[str, float]:
    return {what: seconds for what, seconds in totals(found).items() if seconds}


def test_the_starts_of_a_step_are_told_apart() -> None:
    first, second = starts(EVENTS, LINES)
    assert (first.time, first.first, first.last, first.end) == (103.0, 0, 127.0, "")
    assert (second.time, second.first, second.last, second.end) == (140.0, 10, 166.0, "finished")
    assert (first.restart, second.restart) == (0, 1)
    assert [mark.step for mark in first.marks] == [5, 10, 15]
    assert second.marks[0] == Mark(153.0, 15, {"useful": 5.0})
    assert frontiers([first, second]) == [0, 15]


def test_each_second_of_two_allocations_is_where_a_person_would_count_it() -> None:
    first, second = starts(EVENTS, LINES)
    killed = spans(Allocation("7", 100.0, 128.0), [(first, 0)], True, 999.0)
    assert nonzero(killed) == {
        "starting": 10.0,  # 100 to 110
        "useful": 14.5,
        "stalled": 0.5,
        "saving": 2.0,
        "idle": 1.0,  # what came after the last line is lost
    }
    assert killed[0] == Span(100.0, 103.0, "starting") and killed[-1] == Span(127.0, 128.0, "idle")
    went_on = spans(Allocation("7", 138.0, 168.0), [(second, 15)], True, 999.0)
    assert nonzero(went_on) == {
        "starting": 10.0,  # 138 to 148
        "replayed": 5.0,  # steps 11 to 15
        "useful": 4.0 + 2.0,  # steps 16 to 20, and the end of what the kind does
        "stalled": 1.0,
        "validating": 5.0,
        "saving": 1.0,
        "idle": 2.0,  # from its last word until Slurm had the node back
    }
    assert steps_replayed(first, 0) == 0 and steps_replayed(second, 15) == 5


def test_recovery_is_from_the_last_new_step_to_the_next() -> None:
    """Step 15 was told of at 127; step 16 is the first fifth of a line of 5 s that ends at 161."""
    assert recoveries(starts(EVENTS, LINES)) == [Recovery(("killed",), 15, 127.0, 157.0, 5)]


def test_interruptions_without_a_new_step_between_them_are_made_good_together() -> None:
    between = [
        started(130.0, "resumed"),
        {"time": 131.0, "event": "resumed", "job": "7", "step": 10},
        {"time": 134.0, "event": "failed", "job": "7", "cause": "disk_full"},
    ]
    again = [line(133.0, 12, useful=2)]
    history = starts(
        [*FIRST_EVENTS, *between, *SECOND_EVENTS], [*FIRST_LINES, *again, *SECOND_LINES]
    )
    expected = Recovery(("killed", "disk_full"), 15, 127.0, 157.0, 2 + 5)
    assert recoveries(history) == [expected]
    assert frontiers(history) == [0, 15, 15]


def test_a_line_that_is_half_new_is_half_replayed() -> None:
    start = Start("7", 0, 10.0, 10, (Mark(20.0, 20, {"useful": 8.0}),), 20.0, "", {})
    assert nonzero(spans(Allocation("7", 10.0, 20.0), [(start, 15)], True, 0.0)) == {
        "starting": 2.0,
        "useful": 4.0,
        "replayed": 4.0,
    }


def test_two_starts_in_one_allocation_lie_side_by_side() -> None:
    """The first fails at 128, on record; the second one's first word comes at 140."""
    failed = {"time": 128.0, "event": "failed", "job": "7", "cause": "diverged"}
    first, second = starts([*FIRST_EVENTS, failed, *SECOND_EVENTS], LINES)
    found = spans(Allocation("7", 100.0, 168.0), [(first, 0), (second, 15)], True, 999.0)
    assert Span(127.0, 128.0, "idle") in found
    assert Span(128.0, 140.0, "starting") in found
    assert recoveries([first, second])[0].faults == ("diverged",)


def test_seconds_between_two_lines_that_no_phase_claims_were_idle_where_they_are_many() -> None:
    """A moment passes between the count and the line; minutes are those of a sleeping machine."""
    soon, late = line(120.8, 10, useful=5), line(180.8, 15, useful=5)
    (start,) = starts([started(103.0)], [line(115.0, 5, useful=5), soon, late])
    assert nonzero(spans(Allocation("7", 103.0, 180.8), [(start, 0)], True, 0.0)) == {
        "starting": 7.0,
        "useful": pytest.approx(5 + 5.8 + 5),
        "idle": pytest.approx(55.0),
    }


ONE = Allocation("7", 0.0, 10.0)


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ({"event": "finished"}, {"starting": 1.0, "useful": 7.0, "idle": 2.0}),
        ({"event": "interrupted", "position": 3}, {"starting": 1.0, "useful": 7.0, "idle": 2.0}),
        ({"event": "interrupted"}, {"starting": 1.0, "unknown": 7.0, "idle": 2.0}),
        ({"event": "failed"}, {"starting": 1.0, "unknown": 7.0, "idle": 2.0}),
        ({"event": "left_out"}, {"starting": 1.0, "unknown": 7.0, "idle": 2.0}),  # then killed
    ],
)
def test_a_step_without_time_records_is_useful_where_it_says_how_far_it_came(
    end: Mapping[str, Any], expected: Mapping[str, float]
) -> None:
    (start,) = starts([started(1.0), {"time": 8.0, "job": "7", **end}], [{"time": 5.0, "step": 9}])
    assert nonzero(spans(ONE, [(start, 0)], False, 99.0)) == expected


def test_a_training_that_never_came_to_its_first_step_was_starting() -> None:
    (start,) = starts([started(1.0), {"time": 8.0, "event": "failed", "job": "7"}], [])
    assert nonzero(spans(ONE, [(start, 0)], True, 99.0)) == {"starting": 8.0, "idle": 2.0}


def test_an_interrupted_training_saves_until_its_last_word() -> None:
    end = {"time": 128.5, "event": "interrupted", "job": "7", "signal": "SIGUSR2"}
    (start,) = starts([*FIRST_EVENTS, end], FIRST_LINES)
    found = spans(Allocation("7", 100.0, 129.0), [(start, 0)], True, 0.0)
    assert found[-2:] == [Span(127.0, 128.5, "saving"), Span(128.5, 129.0, "idle")]


def test_what_a_living_allocation_does_now_is_not_yet_known() -> None:
    first, _ = starts(EVENTS, LINES)
    living = Allocation("7", 100.0)
    assert spans(living, [(first, 0)], True, 130.0)[-1] == Span(127.0, 130.0, "unknown")
    assert nonzero(spans(living, [], True, 130.0)) == {"starting": 30.0}
    (silent,) = starts([started(103.0)], [])
    assert nonzero(spans(living, [(silent, 0)], True, 130.0)) == {"starting": 30.0}
    assert nonzero(spans(Allocation("7", 100.0, 130.0), [], True, 0.0)) == {"unknown": 30.0}


def test_lines_of_an_older_version_tell_of_steps_only() -> None:
    old = [
        {"time": 115.0, "step": 5, "seconds_per_step": 1.0},
        {"time": 118.0, "step": 5, "valid_loss": 1.0},
        {"time": 123.0, "step": 10, "seconds_per_step": 0.8},
    ]
    (start,) = starts([started(103.0), {"time": 124.0, "event": "finished", "job": "7"}], old)
    assert nonzero(spans(Allocation("7", 100.0, 124.0), [(start, 0)], False, 0.0)) == {
        "starting": 10.0,
        "useful": 5.0 + 4.0 + 1.0,
        "unknown": 4.0,  # a validation, and what else there was
    }


def test_a_clock_that_was_set_back_stands_still() -> None:
    back = [started(103.0), {"time": 50.0, "event": "finished", "job": "7"}]
    (start,) = starts(back, [line(110.0, 5, useful=5), line(60.0, 10, useful=5)])
    assert [mark.time for mark in start.marks] == [110.0, 110.0]
    found = spans(Allocation("7", 100.0, 112.0), [(start, 0)], True, 0.0)
    assert nonzero(found) == {"starting": 5.0, "useful": 5.0, "idle": 2.0}


TIMES = st.floats(0, 1e6, allow_nan=False)
NUMBERS = st.one_of(st.integers(-5, 100), st.none(), st.text(max_size=2), st.floats(0, 1e4))
SOME_EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "time": TIMES,
            "event": st.sampled_from(["started", "resumed", "finished", "failed", "interrupted"]),
        },
        optional={"host": st.just("n"), "job": st.just("7"), "step": NUMBERS, "restart": NUMBERS},
    )
)
SOME_LINES = st.lists(
    st.fixed_dictionaries(
        {"time": TIMES},
        optional={
            "step": NUMBERS,
            "seconds_per_step": NUMBERS,
            **{metric(phase): NUMBERS for phase in PHASES},
        },
    )
)


@given(SOME_EVENTS, SOME_LINES, TIMES, TIMES, st.booleans())
@example([started(0.0)], [line(2.0, 0, useful=5e-324, stalled=1)], 0.0, 2.0, False)
def test_spans_fill_an_allocation_exactly_whatever_is_on_record(
    events: list[dict[str, Any]],
    lines: list[dict[str, Any]],
    begin: float,
    length: float,
    timed: bool,
) -> None:
    history = starts(events, lines)
    held = list(zip(history, frontiers(history), strict=True))
    allocation = Allocation("7", begin, begin + length)
    found = spans(allocation, held, timed, 0.0)
    edges = [begin, *(span.end for span in found)]
    assert [span.begin for span in found] == edges[:-1], "each begins where the one before it ends"
    assert edges[-1] == begin + length
    assert all(before < after for before, after in pairwise(edges))
    assert {span.what for span in found} <= set(SPENT)
    assert sum(totals(found).values()) == pytest.approx(length, rel=1e-9, abs=1e-6)
    recoveries(history)
