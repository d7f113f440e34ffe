"""One declared change for each cause, with a limit: decided from data alone."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.healing.remedies import EVENT, GivenUp, answer, defaults, in_force, limit_of

OPTIM = {"learning_rate": 1e-3, "clip_norm": 1.0}
SETTINGS = {"training": {"batch_seconds": 40.0, "accumulate": 1, "optim": OPTIM}, "train": "x"}
Events = list[dict[str, Any]]


def taken(cause: str, settings: Any, events: Sequence[Any], declared: Any = None) -> Events:
    """The events with the remedy for one more failure."""
    remedy = answer(cause, "it broke", settings, events, declared)
    changes = {place: list(pair) for place, pair in remedy.changes.items()}
    event = {"event": EVENT, "cause": cause, "changes": changes}
    checkpoints = [each["step"] for each in events if each["event"] == "checkpoint"]
    return [*events, {**event, "position": max(checkpoints, default=-1)}]


def test_too_little_memory_halves_the_batch_and_keeps_the_audio_of_a_step() -> None:
    events: Events = []
    for often in (1, 2, 3):
        events = taken("out_of_memory_gpu", in_force(SETTINGS, events), events)
        training = in_force(SETTINGS, events)["training"]
        assert training["batch_seconds"] == 40 / 2**often
        assert training["batch_seconds"] * training["accumulate"] == 40
    with pytest.raises(GivenUp, match=r"tried 3 of 3 times: training.batch_seconds: 40 -> 20, .*"):
        answer("out_of_memory_gpu", "", in_force(SETTINGS, events), events, None)


def test_a_batch_that_is_counted_in_utterances_has_half_as_many() -> None:
    training = {"batch_seconds": None, "batch_utterances": 12, "accumulate": 2}
    remedy = answer("out_of_memory_gpu", "", {"training": training}, [], None)
    assert remedy.changes == {
        "training.batch_utterances": (12, 6),
        "training.accumulate": (2, 4),
    }


def test_a_diverged_step_learns_half_as_fast() -> None:
    remedy = answer("diverged", "it is lost", SETTINGS, [], None)
    assert remedy.changes == {
        "training.optim.learning_rate": (1e-3, 5e-4),
        "training.optim.clip_norm": (1.0, 0.5),
    }


def test_a_step_that_is_killed_begins_again_as_often_as_it_gets_further() -> None:
    events: Events = []
    for step in range(100, 2100, 100):  # 20 times, each after a checkpoint
        events = taken("killed", SETTINGS, [*events, {"event": "checkpoint", "step": step}])
    events = taken("killed", SETTINGS, events)
    with pytest.raises(GivenUp, match="tried 2 of 2 times: began again; began again"):
        answer("killed", "", SETTINGS, events, None)


@pytest.mark.parametrize("cause", ["port_in_use", "slurm_unreachable"])
def test_what_passes_is_tried_again_ever_later(cause: str) -> None:
    events: Events = []
    pauses = []
    for _ in range(3):
        pauses.append(answer(cause, "", {}, events, None).pause)
        events = taken(cause, {}, events)
    assert pauses == [2.0, 4.0, 8.0]


def test_what_a_step_declares_counts_and_none_is_never() -> None:
    assert limit_of("diverged", None) == 2
    assert limit_of("diverged", {"diverged": 5}) == 5
    assert limit_of("killed", {"diverged": 5}) == 2
    assert limit_of("killed", {}) == 0
    assert limit_of("program_failed", None) == 0
    with pytest.raises(GivenUp, match=r"^$"):
        answer("diverged", "", SETTINGS, [], {})
    assert not answer("program_failed", "", {}, [], {"program_failed": 1}).changes


def test_a_step_without_the_setting_has_no_such_remedy() -> None:
    with pytest.raises(GivenUp, match="no setting of this step"):
        answer("diverged", "", {"argv": ["true"]}, [], None)
    assert "diverged" not in defaults(["argv"]) and "killed" in defaults(["argv"])
    assert defaults(["training.optim.learning_rate"])["diverged"] == 2


def test_what_a_person_has_changed_since_is_left_alone() -> None:
    """Her 10 is not taken for the 10 of the first remedy, and doubled batches do not stay alone."""
    events = taken("diverged", SETTINGS, [])
    for _ in range(2):
        events = taken("out_of_memory_gpu", in_force(SETTINGS, events), events)
    for changed in ({"batch_seconds": 20.0}, {"accumulate": 2}):
        training: dict[str, Any] = {**SETTINGS["training"], **changed}
        now = in_force({**SETTINGS, "training": training}, events)["training"]
        assert now == {**training, "optim": {"learning_rate": 5e-4, "clip_norm": 0.5}}


anything = st.one_of(st.integers(), st.text(), st.none(), st.lists(st.integers(5), max_size=3))


@given(st.lists(anything, max_size=4))
def test_a_damaged_record_changes_nothing(values: list[Any]) -> None:
    damaged = [{"event": EVENT, "changes": value} for value in values]
    damaged += [{"event": EVENT, "changes": {"training.accumulate": value}} for value in values]
    damaged.append({"event": EVENT, "changes": {"training.accumulate": [1, "many"]}})
    assert in_force(SETTINGS, damaged) == SETTINGS
