"""The plan: pure, so its properties are checked over every graph that hypothesis can think of."""

from hypothesis import given
from hypothesis import strategies as st

from jobs.backends import JobState, QueueState
from jobs.plan import ACTIVE, Evidence, State, observe, observe_all, plan, restrict


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
        "b": Evidence(needs=("a",), tried=True, job="2", age=99),
        "c": Evidence(needs=("b",), tried=True, job="3", age=99),
    }
    gone = JobState(QueueState.CANCELLED)
    states = observe_all(evidence, {"2": gone, "3": gone})
    assert [seen.state for seen in states.values()] == [
        State.FAILED,
        State.CANCELLED,
        State.CANCELLED,
    ]
    assert states["c"].reason == "b has not succeeded"
