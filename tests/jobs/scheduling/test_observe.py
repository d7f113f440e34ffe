"""How often the queue is asked, with this machine's own as the queue."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.base import JobState, QueueState
from jobs.backends.local import LocalBackend
from jobs.errors import ClusterError, Elsewhere, UserError
from jobs.scheduling import observe
from jobs.scheduling.observe import Queue, Record, view
from jobs.scheduling.plan import Evidence
from jobs.step_folder import StepDir, Submission
from tests.jobs.test_status import JOB, make_run, write
from tests.slurm.cluster import PATIENCE

JOBS = {"second.t1": JOB}


class Counted(LocalBackend):
    """This machine, with its questions counted."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def states(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        self.asked += 1
        return super().states(jobs)


def test_a_queue_that_says_the_same_is_asked_ever_more_rarely() -> None:
    """After 0.2, 0.3, 0.45, 0.6, 0.6 ... s: 7 questions in 3 s, not 15."""
    backend = Counted()
    queue, end = Queue(backend, every=0.2), time.monotonic() + 3.0
    while time.monotonic() < end or backend.asked < 2:
        assert queue.ask(JOBS)["second.t1"].state is QueueState.FAILED
        time.sleep(0.01)
    assert backend.asked <= 8


def test_a_job_that_was_not_asked_about_is_asked_about_at_once() -> None:
    backend = Counted()
    queue = Queue(backend, every=1000.0)
    queue.ask(JOBS)
    assert set(queue.ask({**JOBS, "third.t2": "999999999.third.t2"})) == {*JOBS, "third.t2"}
    queue.ask(JOBS)
    assert backend.asked == 2


def test_after_a_failure_the_queue_is_asked_soon_and_once(tmp_path: Path) -> None:
    """Slurm takes the steps behind it out of the queue, which no file tells."""
    run, backend = make_run(tmp_path), Counted()
    write(run.step("second"), "submissions.jsonl", [{"time": 5, "token": "second.t1", "job": JOB}])
    queue, end = Queue(backend, every=1000.0), time.monotonic() + PATIENCE
    view(run, queue)
    view(run, queue)
    assert backend.asked == 1 and not queue.is_due
    run.step("second").decide_failure({"cause": "error", "message": "it broke", "job": JOB})
    view(run, queue)
    while not queue.is_due:
        assert time.monotonic() < end
        time.sleep(0.1)
    queue.ask(JOBS)
    view(run, queue)
    assert not queue.is_due


class Clock:
    """The time, in seconds since 1970, which only goes on where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.set_back = 1_000_000.0, 0.0
        monkeypatch.setattr(time, "time", lambda: self.now - self.set_back)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def until_due(self, queue: Queue) -> float:
        """How long a queue waits until it may be asked again."""
        began = self.now
        while not queue.is_due:
            self.now += 0.5
        return self.now - began


class Answers(Counted):
    """A queue that says what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: dict[str, JobState] | ClusterError = {"a": JobState(QueueState.RUNNING)}

    def states(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        self.asked += 1
        if isinstance(self.answer, ClusterError):
            raise self.answer
        return self.answer


def test_the_pauses_grow_by_half_to_three_times_the_first_and_anew_after_a_change(monkeypatch):
    clock, backend = Clock(monkeypatch), Answers()
    queue, pauses = Queue(backend, every=10.0), []
    assert queue.is_due and queue.ask({}) == {} and backend.asked == 0, "nothing to ask about"
    for _ in range(6):
        queue.ask({"a": "1"})
        pauses.append(clock.until_due(queue))
    assert pauses == [10, 15, 22.5, 30, 30, 30] and queue.asked == clock.now - 30
    backend.answer = {"a": JobState(QueueState.PENDING)}
    queue.ask({"a": "1"})
    assert clock.until_due(queue) == 10
    queue.note_failed({"a"})
    assert queue.is_due, "it does not become later by that"
    queue.ask({"a": "1"})
    clock.now += 4
    queue.note_failed({"a"})
    assert clock.until_due(queue) == 11, "that failure was known: 15 s in all"
    queue.ask({"a": "1"})
    clock.now += 4
    queue.note_failed({"b"})
    assert clock.until_due(queue) == 2
    queue.ask({"a": "1"})
    queue.note_failed({"a"})
    assert clock.until_due(queue) > 2, "it was known before the other one"


def test_nobody_is_asked_about_a_try_that_has_recorded_how_it_failed(tmp_path):
    run, backend = make_run(tmp_path), Answers()
    write(run.step("second"), "submissions.jsonl", [{"time": 5, "token": "second.t1", "job": JOB}])
    run.step("second").decide_failure({"cause": "error", "message": "it broke", "job": JOB})
    queue = Queue(backend)
    queue.trouble = "it was silent a moment ago"
    seen = view(run, queue)
    assert seen.observed["second"].state.value == "failed"
    assert backend.asked == 0 and seen.trouble == ""
    assert all(each.events == [] for each in seen.records.values())


def test_a_failure_that_may_still_heal_is_none_while_its_job_lives(tmp_path):
    run, step = make_run(tmp_path), "second"
    write(run.step(step), "submissions.jsonl", [{"time": 5, "token": "second.t1", "job": JOB}])
    run.step(step).write_failure({"cause": "killed", "message": "it died", "job": JOB})
    alive, gone = Answers(), Answers()
    alive.answer = {"second.t1": JobState(QueueState.RUNNING)}
    gone.answer = {"second.t1": JobState(QueueState.FAILED, "exit status 1")}
    said = view(run, Queue(alive)).observed[step]
    assert said.state.value == "running" and said.reason.endswith(
        "begin again after killed: it died"
    )
    said = view(run, Queue(gone)).observed[step]
    assert (said.state.value, said.reason) == ("failed", "killed: it died")


def test_a_failure_that_is_written_while_the_queue_is_asked_is_seen(tmp_path):
    run = make_run(tmp_path)
    write(run.step("second"), "submissions.jsonl", [{"time": 5, "token": "second.t1", "job": JOB}])

    class Late(Answers):
        """A job that fails in this moment."""

        def states(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
            run.step("second").decide_failure({"cause": "error", "message": "it broke", "job": JOB})
            return {token: JobState(QueueState.RUNNING) for token in jobs}

    queue = Queue(Late())
    assert view(run, queue).observed["second"].state.value == "failed"
    assert queue.is_due, "without pauses it is asked each time"
    assert view(run, queue, thorough=True).busy == ""


def test_a_clock_that_is_set_back_makes_no_pause_longer(monkeypatch):
    clock, backend = Clock(monkeypatch), Answers()
    queue = Queue(backend, every=10.0)
    queue.ask({"a": "1"})
    clock.set_back = 3600.0
    assert clock.until_due(queue) == 10
    queue.note_failed({"a"})
    queue.ask({"a": "1"})
    clock.set_back = 7200.0
    queue.note_failed({"b"})
    assert clock.until_due(queue) == 2


def test_only_those_who_are_asked_about_are_answered_of_and_an_old_answer_is_not_asked_again(
    monkeypatch,
):
    Clock(monkeypatch)
    backend = Answers()
    backend.answer = {name: JobState(QueueState.RUNNING) for name in "ab"}
    queue = Queue(backend, every=10.0)
    assert queue.ask({"a": "1"}).keys() == {"a"}
    assert queue.ask({"a": "1", "b": "2"}).keys() == {"a", "b"}
    assert backend.asked == 1


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (Elsewhere("that is of another machine"), "that is of another machine"),
        (ClusterError("timed out"), "Slurm does not answer: timed out"),
    ],
)
def test_a_queue_that_does_not_answer_says_why_and_is_not_asked_at_every_look(
    monkeypatch, error, trouble
):
    clock, backend = Clock(monkeypatch), Answers()
    queue, found = Queue(backend, every=10.0), backend.answer
    assert queue.trouble == ""
    queue.ask({"a": "1"})
    clock.now += 10
    backend.answer = error
    for _ in range(3):
        assert queue.ask({"a": "1"}) == {} and queue.trouble == trouble
    assert backend.asked == 2
    assert clock.until_due(queue) == 10
    backend.answer = found
    assert queue.ask({"a": "1"}) == found and queue.trouble == ""


def record(*tries: Submission, folder: StepDir | None = None, **facts: Any) -> Record:
    plain: dict[str, Any] = {"result": None, "failure": None, "events": []}
    return Record(folder or StepDir(Path("step")), list(tries), **{**plain, **facts})


NOW = 1_000_000.0
FIRST = Submission("one.t1", NOW - 50, job="7")
FAILURE = {"cause": "error", "message": "it broke", "job": "7", "time": NOW - 9}


def test_who_has_said_a_moment_ago_that_it_is_done_has_finished_and_nobody_else(monkeypatch):
    Clock(monkeypatch)
    said = lambda age, job="7", event="finished": {"event": event, "job": job, "time": NOW - age}
    finished = lambda *events: record(FIRST, events=list(events)).evidence(()).finished
    assert finished(said(2)) and finished(said(5), said(4, job="6"))
    assert not finished() and not finished(said(60)) and not finished(said(2, job="6"))
    assert not finished(said(9), said(2, event="failed"))


def test_what_the_files_say_of_a_step_is_put_in_the_words_of_the_plan(monkeypatch, tmp_path):
    Clock(monkeypatch)
    needs = ("before",)
    assert record().evidence(needs) == Evidence(needs=needs)
    assert record(result={}).evidence(needs) == Evidence(needs=needs, succeeded=True)
    refused = record(FIRST._replace(job="", refused="no account"), result={})
    assert refused.evidence(()) == Evidence(succeeded=True, refused="no account")
    folder = StepDir(tmp_path)
    (tmp_path / "submissions.jsonl").mkdir()
    folder.submissions()
    flawed = record(folder=folder).evidence(())
    assert flawed.unreadable == folder.submissions_flaw != ""
    plain = Evidence(needs=needs, tried=True, token="one.t1", job="7", age=50.0)
    assert record(FIRST).evidence(needs) == plain
    assert record(FIRST, result={}).evidence(needs) == plain._replace(succeeded=True)
    asked = FIRST._replace(cancel_requested=NOW - 20, ended=True)
    assert record(asked).evidence(needs) == plain._replace(asked_to_end=20.0, ended=True)
    failed = record(FIRST, failure=FAILURE)
    assert failed.has_own_failure and failed.evidence(needs).failure.endswith(": it broke")
    later = record(FIRST, FIRST._replace(token="one.t2", job="8"), failure=FAILURE)
    assert (later.has_own_failure, later.evidence(needs).failure) == (False, "")
    assert later.evidence(needs).token == "one.t2"
    assert not record(failure=FAILURE).has_own_failure


def event(name: str, **facts: Any) -> dict[str, Any]:
    return {"event": name, "job": "7", "host": "n1", "time": NOW - 30, **facts}


@pytest.mark.parametrize(
    ("events", "began"),
    [
        ([], 0.0),
        ([event("started")], NOW - 30),
        ([event("started", job="6")], 0.0),
        ([event("started", time=NOW - 40), event("resumed")], NOW - 30),
        (
            [
                event("started"),
                {"event": "resumed", "time": NOW - 20},
                event("checkpoint", time=NOW),
            ],
            NOW - 30,
        ),
        ([event("started"), event("interrupted")], 0.0),
        ([event("started"), event("finished")], 0.0),
        ([event("started"), event("failed")], 0.0),
        ([event("interrupted"), event("resumed")], NOW - 30),
    ],
)
def test_a_worker_runs_from_its_newest_start_to_its_end_as_far_as_the_files_know(events, began):
    assert record(FIRST, events=events).evidence(()).began == began


ASKED = FIRST._replace(cancel_requested=NOW)


@pytest.mark.parametrize(
    ("each", "facts", "ordinary", "thorough"),
    [
        (FIRST, {}, True, True),
        (FIRST._replace(ended=True), {}, False, False),
        (FIRST._replace(refused="no"), {}, False, False),
        (FIRST, {"result": {}}, False, True),
        (FIRST, {"failure": FAILURE}, False, True),
        (ASKED, {"failure": {**FAILURE, "time": NOW + 1}}, True, True),
    ],
)
def test_the_queue_is_asked_about_what_only_it_can_tell(each, facts, ordinary, thorough):
    newest = record(each, **facts)
    assert observe._is_open(each, newest, False) is ordinary
    assert observe._is_open(each, newest, True) is thorough


def test_of_older_tries_the_queue_is_asked_if_their_end_was_asked_for_or_by_who_will_submit():
    newest = FIRST._replace(token="one.t2")
    assert not observe._is_open(FIRST, record(FIRST, newest), False)
    assert observe._is_open(FIRST, record(FIRST, newest), True)
    assert observe._is_open(ASKED, record(ASKED, newest), False)
    assert not observe._is_open(ASKED, record(ASKED, newest, result={}), True)


def test_every_record_that_cannot_be_read_is_named_before_anything_is_done(tmp_path):
    folders = []
    for name in ("one", "two"):
        (tmp_path / name / "submissions.jsonl").mkdir(parents=True)
        folders.append(StepDir(tmp_path / name))
        folders[-1].submissions()
    with pytest.raises(UserError) as caught:
        observe._refuse_unreadable({each.path.name: record(folder=each) for each in folders})
    flaws = [each.submissions_flaw for each in folders]
    assert str(caught.value).splitlines() == [
        *flaws, "nothing is done beside jobs that may be alive"
    ]  # fmt: skip
    observe._refuse_unreadable({"three": record()})


def test_a_job_that_another_one_goes_on_for_while_the_queue_is_asked_has_not_failed(tmp_path):
    run = make_run(tmp_path)
    step = run.step("second")
    write(step, "submissions.jsonl", [{"time": 5, "token": "second.t1", "job": JOB}])

    class HandedOver(Counted):
        def states(self, jobs):
            if "second.t1" in jobs:
                step.add_submission("second.t2", continues="second.t1")
                step.add_submission("second.t2", job="999999999.second.t2")
            return super().states(jobs)

    assert view(run, Queue(HandedOver())).observed["second"].state.value == "queued"
