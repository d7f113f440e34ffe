"""That the launcher and the worker call what they are made of: a test goes red for a call less.

Decisions are watched with a queue of paper, a backend that keeps its jobs in a dict and looks at
the run's files whenever it is asked; what a worker does is seen from a process of its own.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.backends.base import JobState, QueueState, StepJob, SubmitUnclear
from jobs.backends.local import LocalBackend
from jobs.cli import main
from jobs.errors import ClusterError, Elsewhere, LimitReached, SubmitRefused, Unreachable, UserError
from jobs.pipeline import Resources
from jobs.scheduling import cancel, environment, patience, recover, submit
from jobs.scheduling.observe import Queue, view
from jobs.scheduling.plan import FOLLOWS, GRACE, Submit
from jobs.step_folder import StepDir
from jobs.store import Following, Run, RunStore, user
from tests.conftest import REPOSITORY
from tests.jobs.test_worker import COMPLETE, events, make_step
from tests.slurm.cluster import PATIENCE

RESOURCES = {"time": "1h", "nodes": 1, "gpus": 0, "cpus": 1, "memory_gb": 1}
NOTHING: dict[str, list[str]] = {"one": [], "two": ["one"], "three": ["two"]}


def make_run(folder: Path, needs: Mapping[str, Sequence[str]] = NOTHING, **facts: Any) -> Run:
    """A run of `true`s that nobody has submitted, with this checkout as its code."""
    run = RunStore(folder / "runs").create(facts.get("name", "demo-1-abcdef"))
    steps = [
        {
            "name": name, "kind": "command", "needs": list(before), "gate": {},
            "settings": {**COMPLETE, "argv": ["true"]}, "resources": RESOURCES,
        }
        for name, before in needs.items()
    ]  # fmt: skip
    run.write_info(
        {
            "name": run.name, "pipeline": "demo", "created": 1.0, "user": user(),
            "cluster": {"name": "local", "backend": "local"}, "cwd": str(folder), "steps": steps,
            **facts,
        }
    )  # fmt: skip
    for step in steps:
        run.step(str(step["name"])).write_job(step)
    run.next_code().symlink_to(REPOSITORY)
    return run


class Paper:
    """A queue whose jobs run until somebody says otherwise."""

    every = 0.0

    def __init__(self, run: Run) -> None:
        self.run = run
        self.state: dict[str, QueueState] = {}  # by id
        self.token: dict[str, str] = {}  # of each id
        self.asked: list[tuple[str, list[str], list[str]]] = []  # step, after, behind
        self.ended: list[list[str]] = []  # ids of each request
        self.trouble: dict[str, Exception] = {}  # of a step's submission, or of "states", "cancel"
        self.leaves = 0  # questions until a job that is asked to end is gone
        self.before_answer: Callable[[], None] = lambda: None

    def identity(self) -> str:
        return "paper"

    def submit(self, job: StepJob, after: Sequence[str], behind: Sequence[str] = ()) -> str:
        intent = self.run.step(job.step).latest()
        assert intent and (intent.token, intent.job) == (job.token, ""), "the intent comes first"
        self.asked.append((job.step, list(after), list(behind)))
        trouble = self.trouble.get(job.step)
        if isinstance(trouble, SubmitRefused):
            raise trouble
        number = str(100 + len(self.state))
        self.state[number], self.token[number] = QueueState.RUNNING, job.token
        if trouble:
            raise trouble
        return number

    def find(self, job: StepJob) -> str | None:
        found = [number for number, token in self.token.items() if token == job.token]
        return found[0] if found else None

    def states(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        if "states" in self.trouble:
            raise self.trouble["states"]
        self.before_answer()
        self.leaves -= 1
        if self.leaves < 0:
            for number in [each for request in self.ended for each in request]:
                self.state[number] = QueueState.CANCELLED
        ids = {self.token[number]: number for number in self.state}
        unknown = JobState(QueueState.UNKNOWN)
        return {
            token: JobState(self.state[ids[token]], job=ids[token]) if token in ids else unknown
            for token in jobs
        }

    def cancel(self, ids: Sequence[str]) -> None:
        for each in ids:
            step = self.token[each].split(".")[0]
            latest = [t for t in self.run.step(step).submissions() if t.token == self.token[each]]
            assert latest[0].cancel_requested, "the request is on record before it is made"
        if "cancel" in self.trouble:
            raise self.trouble["cancel"]
        if ids:
            self.ended.append(list(ids))


def submitted(run: Run, queue: Paper) -> list[str]:
    return [each.step for each in submit.submit_pending(run, queue)]


def test_each_step_is_submitted_behind_its_needs_with_its_intent_and_its_id_on_record(tmp_path):
    run = make_run(tmp_path)
    queue = Paper(run)
    assert submitted(run, queue) == ["one", "two", "three"]
    assert queue.asked == [("one", [], []), ("two", ["100"], []), ("three", ["101"], [])]
    tries = [run.step(name).submissions() for name in NOTHING]
    assert [[each.job for each in some] for some in tries] == [["100"], ["101"], ["102"]]
    assert len({each.token for some in tries for each in some}) == 3
    assert submitted(run, queue) == [], "all are under way"


def test_a_job_has_the_folder_the_code_and_the_resources_of_its_run(tmp_path):
    run = make_run(tmp_path, {"one": []})
    run.next_code().symlink_to(tmp_path)  # mended since it was made
    job = recover.step_job(run, run.steps()[0], "one.t1")
    step = run.step("one")
    assert (job.step, job.token, job.directory, job.logs) == ("one", "one.t1", step.path, step.logs)
    assert job.code == run.codes()[1] != run.codes()[0] and job.cwd == tmp_path
    assert job.resources == Resources.model_validate(RESOURCES)


def test_after_a_refusal_nothing_more_is_asked_and_it_is_on_record(tmp_path):
    run = make_run(tmp_path)
    queue = Paper(run)
    queue.trouble["two"] = SubmitRefused("Invalid account")
    with pytest.raises(ClusterError, match="two: Slurm refused it: Invalid account") as caught:
        submitted(run, queue)
    assert str(caught.value).splitlines()[1] == (
        "queued: one; not submitted: two, three. Where the reason is a limit of how many jobs you "
        f"may have, what is queued goes on; for the rest: launch.py resume {run.name}"
    )
    assert [step for step, *_ in queue.asked] == ["one", "two"]
    assert run.step("two").latest().refused == "Invalid account"
    del queue.trouble["two"]
    assert submitted(run, queue) == ["two", "three"]
    assert queue.asked[-2:] == [("two", ["100"], []), ("three", ["101"], [])]


@pytest.mark.parametrize(("taken", "said"), [(0, "nothing"), (2, "one, two")])
def test_what_is_queued_before_a_refusal_is_listed(tmp_path, taken, said):
    run = make_run(tmp_path)
    queue = Paper(run)
    queue.trouble[list(NOTHING)[taken]] = SubmitRefused("no")
    with pytest.raises(ClusterError, match=f"queued: {said}; not submitted: "):
        submitted(run, queue)


def test_a_submission_without_an_answer_is_looked_for_by_its_token(tmp_path):
    run = make_run(tmp_path)
    queue = Paper(run)
    queue.trouble["one"] = SubmitUnclear("Socket timed out")
    assert submitted(run, queue) == ["one", "two", "three"]
    assert run.step("one").latest().job == "100"
    assert len(queue.state) == 3


def test_a_job_whose_submission_was_never_answered_is_taken_over_by_the_next_start(tmp_path):
    run = make_run(tmp_path, {"one": []})
    queue = Paper(run)
    run.step("one").add_submission("one.t1")
    queue.state["7"], queue.token["7"] = QueueState.RUNNING, "one.t1"
    assert submitted(run, queue) == [] and queue.asked == []
    assert run.step("one").latest().job == "7"


def test_at_most_four_submissions_are_under_way_at_once(tmp_path):
    """Each waits for a fifth one, which does not come."""
    names, at_once, most, fifth = "abcdefgh", 0, 0, threading.Event()
    run, lock = make_run(tmp_path, {name: [] for name in names}), threading.Lock()

    class Crowded(Paper):
        """Counts those who are inside."""

        def submit(self, *given: Any) -> str:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            if most > 4:
                fifth.set()
            fifth.wait(0.3)
            with lock:
                at_once -= 1
                return super().submit(*given)

    assert sorted(submitted(run, Crowded(run))) == list(names)
    assert most == 4


def test_a_submission_that_nobody_finds_again_says_what_to_do(tmp_path, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    run = make_run(tmp_path, {"one": []})
    queue = Paper(run)
    monkeypatch.setattr(queue, "find", lambda job: None)
    queue.trouble["one"] = SubmitUnclear("Socket timed out")
    with pytest.raises(ClusterError) as caught:
        submitted(run, queue)
    assert slept == [1.0] * 5, "a queue shows a new job within seconds"
    token = run.step("one").latest().token
    assert str(caught.value) == (
        f"one: Socket timed out; no job named {token} is in the queue. When the cluster answers "
        f"again: launch.py resume {run.name}"
    )


def test_a_job_is_named_after_its_step_its_run_and_the_try(tmp_path):
    run = make_run(tmp_path, {"one": []}, name="demo-12345x-abcd")
    submitted(run, Paper(run))
    assert re.fullmatch(r"one\.xabcd[0-9a-f]{4}", run.step("one").latest().token)


def test_only_a_try_whose_answer_is_missing_is_looked_for(tmp_path):
    run = make_run(tmp_path, {name: [] for name in ("done", "refused", "ended", "lost")})
    looked: list[str] = []

    class Looked(Paper):
        """Notes what it is asked to find."""

        def find(self, job: StepJob) -> str | None:
            looked.append(job.step)
            return super().find(job)

    run.step("done").add_submission("done.t1", job="1")
    run.step("refused").add_submission("refused.t1")
    run.step("refused").add_submission("refused.t1", refused="Invalid account")
    run.step("ended").add_submission("ended.t1")
    run.step("ended").add_submission("ended.t1", ended=True)
    run.step("lost").add_submission("lost.t1")
    recover.look_closely(run, Looked(run))
    assert looked == ["lost"]


@pytest.mark.parametrize(("ago", "ended"), [(5.0, False), (90.0, True)])
def test_a_job_asked_to_end_that_no_queue_knows_has_ended_after_a_minute(tmp_path, ago, ended):
    run = make_run(tmp_path, {"one": []})
    lines = [
        {"token": "one.t1", "time": time.time() - 200, "job": "7"},
        {"token": "one.t1", "time": time.time() - ago, "cancel_requested": True},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.step("one").path / "submissions.jsonl").write_text(text)
    recover.look_closely(run, Paper(run))
    assert run.step("one").latest().ended is ended


def test_an_end_that_nobody_has_asked_for_is_not_noted_as_one(tmp_path):
    run = make_run(tmp_path, {"one": []})
    queue = Paper(run)
    submitted(run, queue)
    queue.state["100"] = QueueState.CANCELLED
    recover.look_closely(run, queue)
    assert not run.step("one").latest().ended


def test_a_silence_while_the_end_is_waited_for_is_no_end_and_does_not_end_the_waiting(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(cancel, "_PAUSES", (0.0, 0.0, 0.0))
    run, queue = dying(tmp_path)
    answers = iter([None, ClusterError("busy"), None, None])

    def before() -> None:
        if trouble := next(answers):
            queue.leaves = 0
            raise trouble

    queue.before_answer = before
    assert cancel.cancel(run, queue) == (["one"], [], "", ())


def test_while_the_queue_is_silent_nothing_is_submitted_or_ended(tmp_path):
    run = make_run(tmp_path, {"one": []})
    queue = Paper(run)
    submitted(run, queue)
    queue.trouble["states"] = ClusterError("Unable to contact slurm controller")
    for act in (submitted, cancel.cancel):
        with pytest.raises(ClusterError, match="Unable to contact"):
            act(run, queue)
    assert len(queue.asked) == 1 and queue.ended == []


def dying(tmp_path: Path) -> tuple[Run, Paper]:
    """A run of one step whose job was asked to end, and goes on to save for a long time."""
    run = make_run(tmp_path, {"one": []})
    queue = Paper(run)
    submitted(run, queue)
    queue.leaves = 1000
    return run, queue


def test_what_takes_the_place_of_a_living_job_waits_behind_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cancel, "_PAUSES", (0.0, 0.0))
    run, queue = dying(tmp_path)
    assert cancel.cancel(run, queue) == ([], ["one"], "", ())
    assert submitted(run, queue) == ["one"]
    assert queue.asked[-1] == ("one", [], ["100"])
    assert queue.ended == [["100"], ["100"]], "it is asked again: the first may have been lost"


def test_an_older_job_that_is_alive_is_ended_too_although_a_newer_try_has_failed(tmp_path):
    """Two tries of one step: the newest has recorded its end, and the one before runs on."""
    run, queue = dying(tmp_path)
    run.step("one").add_submission("one.t2", job="200")
    queue.state["200"], queue.token["200"] = QueueState.FAILED, "one.t2"
    run.step("one").decide_failure({"cause": "error", "message": "it broke", "job": "200"})
    assert submitted(run, queue) == ["one"]
    assert queue.ended == [["100"]]
    assert queue.asked[-1] == ("one", [], ["100"])


def test_where_a_living_job_cannot_be_ended_nothing_is_submitted(tmp_path, monkeypatch):
    monkeypatch.setattr(cancel, "_PAUSES", (0.0,))
    run, queue = dying(tmp_path)
    queue.trouble["cancel"] = ClusterError("Kill job error")
    assert cancel.cancel(run, queue).trouble == "Kill job error"
    with pytest.raises(ClusterError, match="nothing is submitted beside jobs that may be alive"):
        submitted(run, queue)
    assert len(queue.asked) == 1


def test_that_a_job_has_ended_is_noted_by_whoever_sees_it_first(tmp_path, monkeypatch):
    monkeypatch.setattr(cancel, "_PAUSES", (0.0,))
    run, queue = dying(tmp_path)
    cancel.cancel(run, queue)
    assert not run.step("one").latest().ended
    queue.leaves = 0
    submitted(run, queue)
    assert [each.ended for each in run.step("one").submissions()] == [True, False]
    assert queue.asked[-1] == ("one", [], []), "it is gone: nothing is behind it"


def test_cancel_waits_for_the_end_and_takes_what_stands_behind_but_not_what_has_succeeded(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(cancel, "_PAUSES", (0.0,) * 5)
    run = make_run(tmp_path, {**NOTHING, "beside": []})
    queue = Paper(run)
    submitted(run, queue)
    run.step("one").write_result({})
    queue.leaves = 4
    found = cancel.cancel(run, queue, ["one"])
    assert found == (["two", "three"], [], "", ())
    assert queue.ended == [["103", "102"]], "dependents first"
    ends = {name: run.step(name).latest().ended for name in (*NOTHING, "beside")}
    assert ends == {"one": False, "two": True, "three": True, "beside": False}


def test_cancel_says_which_jobs_are_still_there(tmp_path, monkeypatch):
    monkeypatch.setattr(cancel, "_PAUSES", (0.0,) * 3)
    run, queue = dying(tmp_path)
    assert cancel.cancel(run, queue) == ([], ["one"], "", ())
    queue.leaves = 1
    assert cancel.cancel(run, queue) == (["one"], [], "", ())


def test_a_failed_step_is_submitted_again_although_its_job_is_still_leaving(tmp_path):
    run, queue = dying(tmp_path)
    run.step("one").decide_failure({"cause": "error", "message": "it broke", "job": "100"})
    assert submitted(run, queue) == ["one"]
    assert queue.asked[-1] == ("one", [], ["100"])


def test_nothing_is_done_in_a_folder_that_is_gone_or_beside_unreadable_records(tmp_path):
    run = make_run(tmp_path / "moved", {"one": []}, cwd=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="which is not there"):
        submitted(run, Paper(run))
    run = make_run(tmp_path / "damaged", {"one": []})
    (run.step("one").path / "submissions.jsonl").mkdir()
    with pytest.raises(UserError, match="nothing is done beside jobs that may be alive"):
        submitted(run, Paper(run))


@pytest.mark.parametrize("command", ["cancel", "resume"])
def test_nothing_is_done_for_another_user(tmp_path, monkeypatch, capsys, command):
    run = make_run(tmp_path, {"one": []}, user="nobody-at-all")
    monkeypatch.setenv("TRAINYARD_RUNS", str(run.path.parent))
    assert main([command, run.name]) == 2
    assert f"{run.name} belongs to nobody-at-all" in capsys.readouterr().err


def test_a_step_that_ends_while_the_queue_is_asked_is_seen_to_have_ended(tmp_path):
    """The queue says RUNNING of what it knew a moment ago; the result is there by now."""
    run = make_run(tmp_path, {"one": []})
    queue = Paper(run)
    submitted(run, queue)
    queue.before_answer = lambda: run.step("one").write_result({"wer": 0.1})
    assert view(run, Queue(queue)).observed["one"].state.value == "succeeded"


def test_a_worker_that_began_after_the_queue_was_asked_is_running(tmp_path):
    """One that had begun before is in the queue again: it was preempted."""
    run = make_run(tmp_path, {"one": []})
    queue = Paper(run)
    submitted(run, queue)
    queue.state["100"] = QueueState.PENDING
    run.step("one").add_event("started", {"job": "100", "host": "n1", "time": time.time() - 5})
    asker = Queue(queue, every=1000.0)
    assert view(run, asker).observed["one"].state.value == "queued"
    run.step("one").add_event("started", {"job": "100", "host": "n1", "time": time.time() + 5})
    assert view(run, asker).observed["one"].state.value == "running"


WITH_BESIDE: dict[str, list[str]] = {**NOTHING, "beside": []}


def left_to_jobs(tmp_path: Path) -> tuple[Run, Paper]:
    """A run whose first job is in the queue; it submits the rest, `three` but for `two`."""
    run = make_run(tmp_path, WITH_BESIDE)
    run.step("one").add_submission("one.t1", job="100")
    queue = Paper(run)
    queue.state["100"], queue.token["100"] = QueueState.RUNNING, "one.t1"
    run.write_following(Following(("two", "three", "beside"), {"A": "b"}))
    return run, queue


def test_what_a_limit_keeps_out_is_left_to_the_jobs_before_the_first_of_them_can_end(tmp_path):
    run = make_run(tmp_path, WITH_BESIDE)
    queue, on_disk = Paper(run), list[Following | None]()
    of_paper = queue.submit

    def seen(*job: Any) -> str:
        on_disk.append(run.following())
        return of_paper(*job)

    queue.submit = seen
    queue.trouble["three"] = LimitReached("QOSMaxSubmitJobPerUserLimit")
    here = environment.present()
    assert submitted(run, queue) == ["one", "two", "beside"]
    assert on_disk == [Following((), here)] * 4, "whoever ends early finds the launcher at work"
    assert run.following() == Following(("three",), here)
    del queue.trouble["three"]
    assert submitted(run, queue) == ["three"]
    assert on_disk[4:] == [Following(("three",), here)]
    assert run.following() is None


def test_a_limit_is_waited_for_by_jobs_that_were_there_before(tmp_path):
    run, queue = left_to_jobs(tmp_path)
    queue.trouble |= {name: LimitReached("no more") for name in ("two", "beside")}
    assert submitted(run, queue) == []
    assert run.following().steps == ("two", "three", "beside")
    assert not run.following().stopped


@pytest.mark.parametrize("before", [None, Following(("one",), {"A": "b"}, "refused")])
def test_a_limit_that_no_job_of_the_run_can_wait_for_is_said_and_all_is_as_it_was(tmp_path, before):
    run = make_run(tmp_path, {"one": []})
    run.write_following(before)
    queue = Paper(run)
    queue.trouble["one"] = LimitReached("no more")
    with pytest.raises(ClusterError, match="one: Slurm refused it: no more"):
        submitted(run, queue)
    assert run.following() == before


def test_cancel_takes_its_steps_from_those_that_jobs_of_the_run_submit(tmp_path):
    run, queue = left_to_jobs(tmp_path)
    assert cancel.cancel(run, queue, ["two"]) == ([], [], "", ("two", "three"))
    assert run.following() == Following(("beside",), {"A": "b"})
    assert queue.ended == [], "what runs is not among them"
    assert cancel.cancel(run, queue).unsubmitted == ("beside",)
    assert run.following() is None


def test_what_is_left_to_the_jobs_of_a_run_is_said_while_one_of_them_is_there(tmp_path):
    run, queue = left_to_jobs(tmp_path)
    seen = view(run, Queue(queue))
    assert seen.follows == {"two", "three", "beside"}
    assert [seen.observed[name] for name in seen.follows] == [FOLLOWS] * 3
    assert seen.observed["one"].state.value == "running"


@pytest.mark.parametrize(
    ("ago", "stopped", "said"),
    [
        (5.0, "", FOLLOWS.reason),
        (5.0, "Slurm refused it: no such account", "Slurm refused it: no such account"),
        (GRACE + 5.0, "", "nobody has submitted it since"),
    ],
)
def test_what_is_left_is_for_a_person_where_no_job_is_there_to_submit_it(
    tmp_path, ago, stopped, said
):
    run, queue = left_to_jobs(tmp_path)
    run.write_following(run.following()._replace(stopped=stopped))
    run.step("one").add_event("finished", {"job": "100", "time": time.time() - ago})
    run.step("one").write_result({})
    seen = view(run, Queue(queue))
    if said != FOLLOWS.reason:
        said = f"it did not fit into the queue, and {said}: launch.py resume"
    assert seen.observed["two"].reason == said and seen.observed["two"].state.value == "new"
    assert ("two" in seen.follows) is (said == FOLLOWS.reason)
    with run.lock():
        seen = view(run, Queue(queue))
    assert ("two" in seen.follows) is (not stopped), "a launcher is at it"


@pytest.mark.parametrize(
    ("trouble", "raised"),
    [
        (Unreachable("Unable to contact"), Unreachable),
        (ClusterError("a word that means nothing"), ClusterError),
        (Elsewhere("this run is another machine's"), ClusterError),
    ],
)
def test_a_silence_that_may_pass_is_told_from_one_that_does_not(tmp_path, trouble, raised):
    """The first is waited for by `submit_patiently`."""
    run, queue = dying(tmp_path)
    queue.trouble["states"] = trouble
    with pytest.raises(ClusterError) as met:
        submitted(run, queue)
    assert type(met.value) is raised


def test_what_a_patient_submission_returns_is_what_it_has_submitted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(patience, "_PAUSES", (0.0, 0.0))
    run = make_run(tmp_path, WITH_BESIDE)
    run.step("one").write_result({})
    queue, questions = Paper(run), iter([Unreachable("Socket timed out")])

    def once() -> None:
        for trouble in questions:
            raise trouble

    queue.before_answer = once
    run.step("beside").add_submission("beside.t1", job="100")
    queue.state["100"], queue.token["100"] = QueueState.RUNNING, "beside.t1"
    assert submit.submit_patiently(run, queue) == [Submit("two", ()), Submit("three", ("two",))]
    assert "Socket timed out\ntrying again in 0 s" in capsys.readouterr().out
    assert submit.submit_patiently(run, queue) == []


def test_the_failure_of_an_earlier_job_says_nothing_of_the_one_that_waits(tmp_path):
    run = make_run(tmp_path, {"one": []})
    run.step("one").decide_failure({"cause": "error", "message": "it broke", "job": "7"})
    queue = Paper(run)
    submitted(run, queue)
    queue.state["100"] = QueueState.PENDING
    seen = view(run, Queue(queue)).observed["one"]
    assert seen.state.value == "queued" and "it broke" not in seen.reason


def test_a_result_that_is_said_to_be_there_and_is_not_is_made_again_by_whoever_holds_the_lock(
    tmp_path,
):
    """`resume` may have set it aside. Others wait for it: a file may be seen late."""
    run = make_run(tmp_path, {"one": []})
    queue = Paper(run)
    submitted(run, queue)
    queue.state["100"] = QueueState.SUCCEEDED
    run.step("one").add_event("finished", {"job": "100", "time": time.time()})
    assert view(run, Queue(queue)).observed["one"].state.value == "running"
    assert submitted(run, queue) == ["one"]


def test_who_submits_at_this_moment_is_named(tmp_path):
    run = make_run(tmp_path, {"one": []})
    with run.lock():
        seen = view(run, Queue(Paper(run)))
    assert seen.busy and seen.observed["one"].reason == f"being submitted by {seen.busy}"


def wait_for(path: Path, content: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists() or path.read_text() != content:
        assert time.monotonic() < deadline, path.read_text() if path.exists() else "not there"
        time.sleep(0.02)


def test_a_job_of_this_machine_waits_until_the_jobs_it_is_behind_have_ended(tmp_path):
    """In runs folders of their own, so that no turn is waited for."""
    ran, backend = tmp_path / "ran", LocalBackend()
    scripts = {"slow": f"sleep 0.7; echo slow >> {ran}", "next": f"echo next >> {ran}"}
    behind: list[str] = []
    for name, script in scripts.items():
        run = make_run(tmp_path / name, {"one": []})
        step = run.steps()[0]
        step["settings"] = {**COMPLETE, "argv": ["sh", "-c", script]}
        run.step("one").write_job(step)
        token = f"one.{name}"
        run.step("one").add_submission(token)
        behind = [backend.submit(recover.step_job(run, step, token), [], behind)]
    wait_for(ran, "slow\nnext\n")


def start(step: StepDir, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The worker, as a process, to its end; without the settings of this test's own process."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, "-m", "jobs.worker", str(step.path)],
        cwd=REPOSITORY, env={**inherited, "TRAINYARD_JOB": "7", **environment},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip


def test_a_worker_gives_its_program_as_many_threads_as_it_has_cores(tmp_path):
    write = 'printf \'{"threads": %s}\' "$OMP_NUM_THREADS" > $TRAINYARD_RESULT'
    step = make_step(tmp_path, ["sh", "-c", write], resources={**RESOURCES, "cpus": 3})
    assert start(step).returncode == 0
    assert step.result()["threads"] == 3


def test_a_worker_judges_the_gate_and_a_result_that_misses_it_is_no_result(tmp_path):
    write = "printf '{\"wer\": 0.5}' > $TRAINYARD_RESULT"
    step = make_step(tmp_path, ["sh", "-c", write], gate={"wer": "<= 0.1"})
    assert start(step).returncode == 1
    assert step.result() is None and step.failure()["cause"] == "gate_missed"
    assert "wer is 0.5" in step.failure()["message"]


TAKEN_OVER = {"token": "train.zz", "job": "8", "restart": 0, "host": "elsewhere"}


@pytest.mark.parametrize("status", [0, 1])
def test_a_worker_writes_neither_result_nor_failure_nor_event_once_a_newer_start_has_the_step(
    tmp_path, status
):
    claim = f"printf '%s' '{json.dumps(TAKEN_OVER)}' > $TRAINYARD_STEP/attempt.json; exit {status}"
    step = make_step(tmp_path, ["sh", "-c", claim])
    done = start(step)
    assert "goes on elsewhere (start 1 of job 8 on elsewhere)" in done.stdout, done.stderr
    assert step.result() is None and step.failure() is None
    assert events(step) == ["started"]


def test_a_worker_of_a_job_that_was_submitted_anew_does_not_begin(tmp_path):
    step = make_step(tmp_path, ["touch", str(tmp_path / "ran")])
    for token in ("train.aa", "train.bb"):
        step.add_submission(token)
    done = start(step, TRAINYARD_JOB="7.train.aa")
    assert "was submitted anew" in done.stdout
    assert not (tmp_path / "ran").exists() and events(step) == []
    assert start(step, TRAINYARD_JOB="8.train.bb").returncode == 0
    assert step.claim()["token"] == "train.bb"


def test_a_train_step_passes_on_what_is_added_to_its_loss(tmp_path):
    from jobs.job import Job
    from jobs.kinds import train
    from lact_asr.data.manifest import write_manifest
    from tests.lact_asr.tiny_runs import MODEL, tones

    write_manifest(tmp_path / "tones.jsonl", tones(tmp_path, 2))
    lines: list[Mapping[str, Any]] = []
    settings = train.Settings(
        train=tmp_path / "tones.jsonl", dev=tmp_path / "tones.jsonl", preset="plain",
        model={**MODEL.model_dump(), "layers": 2}, ctc={"intermediate": [1]},
        training={"max_steps": 1, "batch_seconds": 14},
    )  # fmt: skip
    job = Job(tmp_path, 0, 1, 0, lines.append, lambda name, **facts: None, lambda: False)
    train.run(settings, job)
    assert lines[0]["intermediate"] > 0
