"""Where a run stands: what the files say of each step, and what the queue says of the rest.

Each file is read once. The ends of steps are read after the queue was asked: a job that the queue
calls ended has written its end by then.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from jobs.backends import Backend, JobState
from jobs.errors import ClusterError
from jobs.plan import Evidence, Observed, observe_all
from jobs.store import Run, StepDir, Submission

STARTS, ENDS = ("started", "resumed"), ("interrupted", "finished", "failed")


class Record(NamedTuple):
    """What the files of one step say."""

    folder: StepDir
    tries: list[Submission]  # oldest first
    result: dict[str, Any] | None
    failure: dict[str, Any] | None
    events: list[dict[str, Any]]

    @property
    def latest(self) -> Submission | None:
        """The newest try, or None for a step never submitted."""
        return self.tries[-1] if self.tries else None

    def evidence(self, needs: tuple[str, ...]) -> Evidence:
        """The same in the words of the plan."""
        latest, failure, now = self.latest, self.failure, time.time()
        if latest is None or latest.refused:
            refused = latest.refused if latest else ""
            return Evidence(needs=needs, succeeded=self.result is not None, refused=refused)
        current = failure is not None and failure["job"] == latest.job
        requested = latest.cancel_requested
        return Evidence(
            needs=needs,
            succeeded=self.result is not None,
            tried=True,
            failure=f"{failure['class']}: {failure['message']}" if failure and current else "",
            token=latest.token,
            job=latest.job,
            age=now - latest.time,
            asked_to_end=now - requested if requested else None,
            ended=latest.ended,
            began=self._began(latest.job),
        )

    def _began(self, job: str) -> float:
        """When the newest worker of a job started, if nothing says that it has left; else 0."""
        for event in reversed(self.events):
            if event["event"] in ENDS:
                return 0.0
            if event["event"] in STARTS and "host" in event:  # training says what it resumed, too
                return float(event["time"]) if event.get("job") == job else 0.0
        return 0.0


class View(NamedTuple):
    """A run at one moment."""

    records: Mapping[str, Record]  # by step
    observed: Mapping[str, Observed]  # by step
    queue: Mapping[str, JobState]  # by token
    trouble: str = ""  # why the queue was not heard; empty where it was, or need not be asked


class Queue:
    """The queue's answers. It is asked at most once in `every` seconds: between two answers files
    tell how a run goes on.
    """

    def __init__(self, backend: Backend, every: float = 0.0) -> None:
        self.backend, self.every = backend, every
        self.asked = 0.0  # time of the last question, seconds since 1970
        self.trouble = ""
        self._answer: dict[str, JobState] = {}

    def ask(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """The state of the job of each token (token -> id), as the last answer had it."""
        if not jobs:
            return {}
        unasked = any(token not in self._answer for token in jobs) and not self.trouble
        if unasked or time.time() - self.asked >= self.every:
            self.asked = time.time()
            try:
                self._answer, self.trouble = self.backend.states(jobs), ""
            except ClusterError as error:
                self._answer, self.trouble = {}, str(error)
        return {token: self._answer[token] for token in jobs if token in self._answer}


def view(run: Run, queue: Queue, *, thorough: bool = False) -> View:
    """Read the files of a run and ask the queue about the jobs that have not recorded an end.

    A `thorough` question is also about jobs that have recorded a failure and may still be ending,
    and about all earlier ones that may be alive: nothing is submitted beside a living job.
    """
    needs = {step["name"]: tuple(step["needs"]) for step in run.steps()}
    busy = "" if thorough else run.busy()  # who asks thoroughly holds the lock
    first = {name: _read(run.step(name)) for name in needs}
    asked_about = {
        each.token: each.job
        for record in first.values()
        for each in record.tries
        if _is_open(each, record, thorough)
    }
    answer = queue.ask(asked_about)
    records = {name: _read_ends(record) for name, record in first.items()}
    evidence = {name: record.evidence(needs[name]) for name, record in records.items()}
    observed = observe_all(evidence, answer, queue.asked, busy)
    return View(records, observed, answer, queue.trouble if asked_about else "")


def _is_open(each: Submission, record: Record, thorough: bool) -> bool:
    """Whether only the queue can tell how this try is."""
    if each.ended or each.refused or record.result is not None:
        return False
    if thorough or each.cancel_requested:
        return True
    failed = record.failure is not None and record.failure["job"] == each.job
    return each is record.tries[-1] and not failed


def _read(folder: StepDir) -> Record:
    tries = folder.submissions()
    failure = folder.failure() if tries else None
    return Record(folder, tries, folder.result(), failure, [])


def _read_ends(record: Record) -> Record:
    """The same with what has happened, and the ends that were written while the queue was asked."""
    if not record.tries:
        return record
    folder, result = record.folder, record.result
    if result is None:
        result = folder.result()
    return record._replace(result=result, failure=folder.failure(), events=folder.events())
