"""How often the queue is asked, with this machine's own as the queue."""

import time
from collections.abc import Mapping
from pathlib import Path

from jobs.backends.base import JobState, QueueState
from jobs.backends.local import LocalBackend
from jobs.scheduling.observe import Queue, view
from tests.jobs.test_status import JOB, make_run, write

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
    queue, end = Queue(backend, every=1000.0), time.monotonic() + 60.0
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
