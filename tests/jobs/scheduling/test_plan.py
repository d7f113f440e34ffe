"""The plan: pure, so its properties are checked over every graph that hypothesis can think of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.backends.base import JobState, QueueState
from jobs.scheduling.plan import (
    ACTIVE,
    FOLLOWS,
    Evidence,
    Observed,
    State,
    Submit,
    following,
    observe,
    observe_all,
    plan,
    plan_rest,
    restrict,
)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    count = draw(st.integers(1, 8))
    names = [f"s{index}" for index in range(count)]
    return {
        name: tuple(draw(st.sets(st.sampled_from(names[:index])))) if index else ()
        for index, name in enumerate(names)
    }


@st.composite
def observed(draw: st.DrawFn) -> tuple[dict[str, tuple[str, ...]], dict[str, State]]:
    needs = draw(graphs())
    return needs, {name: draw(st.sampled_from(list(State))) for name in needs}


@given(observed())
def test_a_plan_submits_what_is_not_done_each_step_once_behind_unfinished_needs_only(case) -> None:
    needs, states = case
    todo = plan(needs, states)
    names = [submit.step for submit in todo]
    assert len(names) == len(set(names))
    for name, state in states.items():
        if state is State.SUCCEEDED:
            assert name not in names
        elif state not in ACTIVE:
            assert name in names
    for submit in todo:
        assert set(submit.after) == {
            n for n in needs[submit.step] if states[n] is not State.SUCCEEDED
        }


@given(observed())
def test_whatever_a_step_is_put_behind_is_under_way_or_submitted_before_it(case) -> None:
    needs, states = case
    seen: set[str] = set()
    for submit in plan(needs, states):
        for before in submit.after:
            assert before in seen or states[before] in ACTIVE
        seen.add(submit.step)


@given(observed())
def test_no_step_stays_queued_behind_a_job_that_is_submitted_anew(case) -> None:
    needs, states = case
    names = {submit.step for submit in plan(needs, states)}
    for name, state in states.items():
        if state is not State.SUCCEEDED and names & set(needs[name]):
            assert name in names


@given(observed())
def test_after_a_plan_is_carried_out_nothing_is_left_to_do(case) -> None:
    needs, states = case
    done = {**states, **{submit.step: State.QUEUED for submit in plan(needs, states)}}
    assert plan(needs, done) == []


@given(graphs(), st.data())
def test_only_means_the_step_and_all_it_needs_and_nothing_else(needs, data) -> None:
    wanted = data.draw(st.sampled_from(sorted(needs)))
    kept = restrict(needs, [wanted])
    assert wanted in kept
    for name in kept:
        assert set(needs[name]) <= set(kept)
    assert all(any(name in needs[other] for other in kept) for name in kept if name != wanted)


def test_a_result_beats_a_failure_and_a_failure_beats_the_queue() -> None:
    running = JobState(QueueState.RUNNING)
    both = Evidence(tried=True, job="1", succeeded=True, failure="error: x")
    assert observe(both, running).state is State.SUCCEEDED
    assert observe(Evidence(tried=True, job="1", failure="error: x"), running).state is State.FAILED
    assert observe(Evidence(tried=True, job="1"), running).state is State.RUNNING


def test_a_job_the_cluster_does_not_know_is_lost_only_after_a_minute() -> None:
    unknown = JobState(QueueState.UNKNOWN)
    assert observe(Evidence(tried=True, job="1", age=5), unknown).state is State.QUEUED
    assert observe(Evidence(tried=True, job="1", age=90), unknown).state is State.LOST


def test_a_job_that_ended_well_without_a_result_has_failed() -> None:
    ended = JobState(QueueState.SUCCEEDED)
    assert observe(Evidence(tried=True, job="1", age=9), ended).state is State.FAILED


def test_a_step_behind_a_failed_one_is_cancelled_and_says_why() -> None:
    evidence = {
        "a": Evidence(tried=True, job="1", failure="gate: wer is 1.0"),
        "b": Evidence(needs=("a",), tried=True, token="b.1", job="2", age=99),
        "c": Evidence(needs=("b",), tried=True, token="c.1", job="3", age=99),
    }
    gone = JobState(QueueState.CANCELLED)
    states = observe_all(evidence, {"b.1": gone, "c.1": gone})
    assert [seen.state for seen in states.values()] == [
        State.FAILED,
        State.CANCELLED,
        State.CANCELLED,
    ]
    assert states["c"].reason == "b has not succeeded"


def test_a_job_asked_to_end_is_cancelled_when_the_queue_says_that_it_is_gone_not_before() -> None:
    asked = Evidence(tried=True, token="a.1", job="1", asked_to_end=4.2)
    seen = observe(asked, JobState(QueueState.RUNNING))
    assert seen == (State.RUNNING, "asked to end 4 s ago, and still there")
    assert observe(asked, JobState(QueueState.CANCELLED)).state is State.CANCELLED
    assert observe(asked, JobState(QueueState.FAILED)).state is State.CANCELLED
    assert observe(asked, JobState(QueueState.UNKNOWN)).state is State.QUEUED
    late = asked._replace(asked_to_end=90)
    assert observe(late, JobState(QueueState.UNKNOWN)).state is State.CANCELLED


def test_while_the_queue_does_not_answer_the_files_speak() -> None:
    tried = Evidence(tried=True, token="a.1", job="1", age=900)
    assert observe(tried, None) == (State.QUEUED, "as far as the files say")
    assert observe(tried._replace(began=100.0), None).state is State.RUNNING
    ending = tried._replace(began=100.0, asked_to_end=3)
    assert observe(ending, None).reason == "as far as the files say; it was asked to end"


def test_a_worker_that_has_started_since_the_last_answer_is_running() -> None:
    pending, step = JobState(QueueState.PENDING, "Priority"), Evidence(tried=True, job="1")
    assert observe(step._replace(began=150.0), pending, asked=100.0) == (State.RUNNING, "")
    assert observe(step._replace(began=50.0), pending, asked=100.0).state is State.QUEUED


def test_a_refused_step_is_new_and_says_what_the_cluster_said() -> None:
    refused = Evidence(refused="Invalid account")
    assert observe(refused, None) == (State.NEW, "Slurm refused it: Invalid account")


def test_a_submission_without_an_answer_is_lost_unless_somebody_is_submitting() -> None:
    evidence = {"a": Evidence(tried=True, token="a.1"), "b": Evidence(needs=("a",))}
    unknown = {"a.1": JobState(QueueState.UNKNOWN)}
    idle = observe_all(evidence, unknown)
    assert idle["a"].state is State.LOST and "launch.py resume" in idle["a"].reason
    assert idle["b"] == (State.NEW, "never submitted: launch.py resume")
    busy = observe_all(evidence, unknown, busy="process 7 on login1")
    assert busy["a"] == (State.QUEUED, "being submitted by process 7 on login1")
    assert busy["b"] == (State.NEW, "being submitted by process 7 on login1")


ALIVE, UNKNOWN = JobState(QueueState.RUNNING), JobState(QueueState.UNKNOWN, "sacct is off")
TRIED = Evidence(tried=True, token="a.1", job="1", age=99)


def test_every_state_comes_with_its_reason() -> None:
    """A table of all there is to say: a reason is what a user acts on."""
    held = JobState(QueueState.PENDING, "held by its user")
    for evidence, queue, expected in (
        (TRIED._replace(unreadable="it is empty"), ALIVE, (State.LOST, "it is empty")),
        (TRIED._replace(failure="data: none"), ALIVE, (State.FAILED, "data: none")),
        (
            TRIED._replace(undecided="killed: x"),
            ALIVE,
            (State.RUNNING, "looks whether it can begin again after killed: x"),
        ),
        (TRIED._replace(undecided="killed: x"), UNKNOWN, (State.FAILED, "killed: x")),
        (TRIED._replace(ended=True), ALIVE, (State.CANCELLED, "by launch.py cancel")),
        (TRIED, held, (State.QUEUED, "held by its user")),
        (TRIED, UNKNOWN, (State.LOST, "sacct is off")),
        (TRIED._replace(age=1), UNKNOWN, (State.QUEUED, "not in the queue's records yet")),
        (
            TRIED,
            JobState(QueueState.SUCCEEDED),
            (State.FAILED, "its job ended without a result: see its log"),
        ),
        (
            TRIED._replace(finished=True),
            JobState(QueueState.SUCCEEDED),
            (State.RUNNING, "its job has ended, its result is not seen here yet"),
        ),
        (
            TRIED._replace(asked_to_end=1.0),
            UNKNOWN,
            (State.QUEUED, "asked to end; not in the queue's records yet"),
        ),
    ):
        assert observe(evidence, queue) == expected


def test_a_minute_is_enough_and_what_began_with_the_answer_is_not_newer_than_it() -> None:
    assert observe(TRIED._replace(age=60), UNKNOWN).state is State.LOST
    assert observe(TRIED._replace(asked_to_end=60.0), UNKNOWN).state is State.CANCELLED
    pending = JobState(QueueState.PENDING)
    assert observe(TRIED._replace(began=100.0), pending, asked=100.0).state is State.QUEUED
    assert observe(TRIED._replace(began=0.5), pending).state is State.RUNNING


def test_of_all_steps_too_a_start_after_the_answer_counts_and_a_success_breaks_nothing() -> None:
    evidence = {
        "a": Evidence(succeeded=True),
        "b": Evidence(needs=("a",), tried=True, token="b.1", job="2", age=99, began=150.0),
        "c": Evidence(needs=("a",), tried=True, token="c.1", job="3", age=99),
        "d": Evidence(needs=("a",), tried=True, token="d.1", job="4", age=99, began=0.5),
    }
    queue = {
        "b.1": JobState(QueueState.PENDING),
        "c.1": JobState(QueueState.CANCELLED, "by scancel"),
        "d.1": JobState(QueueState.PENDING),
    }
    found = observe_all(evidence, queue, asked=100.0)
    assert [seen.state for seen in found.values()] == [
        State.SUCCEEDED, State.RUNNING, State.CANCELLED, State.QUEUED,
    ]  # fmt: skip
    assert found["c"].reason == "by scancel", "what it needs has succeeded: that is not why"
    assert observe_all(evidence, queue)["d"].state is State.RUNNING


CHAIN: dict[str, list[str]] = {"one": [], "two": ["one"], "three": ["two"], "four": ["three"]}


def states(*found: State) -> dict[str, State]:
    return dict(zip(CHAIN, found, strict=True))


def test_what_is_left_follows_behind_what_has_not_succeeded_yet():
    found = plan_rest(CHAIN, states(State.SUCCEEDED, State.RUNNING, State.NEW, State.NEW), CHAIN)
    assert found == [Submit("three", ("two",)), Submit("four", ("three",))]


@pytest.mark.parametrize("ended", [State.FAILED, State.CANCELLED, State.LOST])
def test_behind_an_end_without_success_nothing_follows(ended):
    at = states(State.SUCCEEDED, ended, State.NEW, State.NEW)
    assert plan_rest(CHAIN, at, ["three", "four"]) == []
    assert plan_rest({**CHAIN, "three": ["one"]}, at, ["three"]) == [Submit("three", ())]


def test_only_what_is_to_follow_does_and_nothing_behind_what_is_not():
    at = states(State.SUCCEEDED, State.RUNNING, State.NEW, State.NEW)
    assert plan_rest(CHAIN, at, ["four"]) == [], "three was cancelled before it was submitted"
    assert plan_rest(CHAIN, at, ["two", "three"]) == [Submit("three", ("two",))], "two runs"


@pytest.mark.parametrize(
    ("active", "stopped", "recent", "follows"),
    [
        (True, "", False, True),
        (True, "refused", False, True),
        (False, "", True, True),
        (False, "refused", True, False),
        (False, "", False, False),
    ],
)
def test_what_is_left_is_said_to_follow_while_somebody_is_there_to_submit_it(
    active, stopped, recent, follows
):
    second = State.RUNNING if active else State.SUCCEEDED
    at = states(State.SUCCEEDED, second, State.NEW, State.NEW)
    observed = {name: Observed(state) for name, state in at.items()}
    said = following(CHAIN, observed, ["three", "four"], stopped, recent)
    assert [*said] == ["three", "four"]
    why = f"it did not fit into the queue, and {stopped or 'nobody has submitted it since'}"
    left = Observed(State.NEW, f"{why}: launch.py resume")
    assert set(said.values()) == {FOLLOWS if follows else left}
