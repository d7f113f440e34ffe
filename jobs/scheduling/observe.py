"""Where a run stands: what the files say of each step, and what the queue says of the rest.

Each file is read once. The ends of steps are read after the queue was asked: a job that the queue
calls ended has written its end by then.
"""

import math
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from jobs.backends.base import Backend, JobState
from jobs.errors import ClusterError, Elsewhere, Unreachable, UserError
from jobs.healing.spans import ENDS, STARTS
from jobs.scheduling.plan import FOLLOWS, GRACE, Evidence, Observed, following, observe_all
from jobs.step_folder import StepDir, Submission, is_own
from jobs.store import Run

_RARER, _RAREST = 1.5, 3.0  # factors of the time between two questions: 10, 15, 22, 30 s
_SOON = 2.0  # seconds in which Slurm takes the steps behind a failed one out of the queue


class Record(NamedTuple):
    """What the files of one step say."""

    folder: StepDir
    tries: list[Submission]  # oldest first
    result: dict[str, Any] | None
    failure: dict[str, Any] | None
    events: list[dict[str, Any]]

    @property
    def has_own_failure(self) -> bool:
        """Whether the newest try has recorded how it failed by itself."""
        return is_own(self.failure, self.latest)

    @property
    def _is_undecided(self) -> bool:
        """Whether a rank of the newest try has failed, and nobody has said yet what comes of it."""
        failure, latest = self.failure, self.latest
        own = failure is not None and is_own({**failure, "decided": True}, latest)
        return own and not self.has_own_failure

    @property
    def latest(self) -> Submission | None:
        """The newest try, or None for a step never submitted."""
        return self.tries[-1] if self.tries else None

    def evidence(self, needs: tuple[str, ...]) -> Evidence:
        """The same in the words of the plan."""
        latest, failure, now = self.latest, self.failure, time.time()
        if latest is None or latest.refused:
            refused = latest.refused if latest else ""
            return Evidence(
                needs=needs,
                succeeded=self.result is not None,
                refused=refused,
                unreadable=self.folder.submissions_flaw,
            )
        requested = latest.cancel_requested
        return Evidence(
            needs=needs,
            succeeded=self.result is not None,
            tried=True,
            failure=_in_words(failure) if failure and self.has_own_failure else "",
            undecided=_in_words(failure) if failure and self._is_undecided else "",
            token=latest.token,
            job=latest.job,
            age=now - latest.time,
            asked_to_end=now - requested if requested else None,
            ended=latest.ended,
            finished=self._has_finished(latest.job, now),
            began=self._began(latest.job),
        )

    def _has_finished(self, job: str, now: float) -> bool:
        """Whether the worker of a job has just said so: a file system may show the result later."""
        said = [each for each in self.events if each["event"] in ENDS and each.get("job") == job]
        newest = said[-1] if said else {"event": ""}
        return newest["event"] == "finished" and now - float(newest["time"]) < GRACE

    def _began(self, job: str) -> float:
        """When the newest worker of a job started, if nothing says that it has left; else 0."""
        for event in reversed(self.events):
            if event["event"] in ENDS:
                return 0.0
            if event["event"] in STARTS and "host" in event:  # training says what it resumed, too
                return float(event["time"]) if event.get("job") == job else 0.0
        return 0.0


def _in_words(failure: Mapping[str, Any]) -> str:
    return f"{failure['cause']}: {failure['message']}"


class View(NamedTuple):
    """A run at one moment."""

    records: Mapping[str, Record]  # by step
    observed: Mapping[str, Observed]  # by step
    queue: Mapping[str, JobState]  # by token
    trouble: str = ""  # why the queue was not heard; empty where it was, or need not be asked
    busy: str = ""  # who is submitting or cancelling at this moment
    follows: frozenset[str] = frozenset()  # the steps that jobs of the run will submit


class Queue:
    """The queue's answers. It is asked at most once in `every` seconds, and ever more rarely while
    it says the same: between two answers files tell how a run goes on.
    """

    def __init__(self, backend: Backend, every: float = 0.0) -> None:
        self.backend, self.every = backend, every
        self.asked = 0.0  # time of the last question, seconds since 1970
        self.trouble = ""
        self.unreachable = False  # whether that may pass by itself
        self._ticks = -math.inf  # the same on a clock that nobody sets back
        self._pause = every  # seconds until the next question
        self._failed: set[str] = set()
        self._answer: dict[str, JobState] = {}

    @property
    def is_due(self) -> bool:
        """Whether the queue may be asked again."""
        return self._since_asked >= self._pause

    @property
    def _since_asked(self) -> float:
        return time.monotonic() - self._ticks

    def note_failed(self, names: set[str]) -> None:
        """After another failure ask soon: no file tells what becomes of the steps behind it."""
        if names - self._failed:
            self._failed |= names
            self._pause = min(self._pause, self._since_asked + _SOON)

    def ask(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """The state of the job of each token (token -> id), as the last answer had it."""
        if not jobs:
            return {}
        unasked = any(token not in self._answer for token in jobs) and not self.trouble
        if unasked or self.is_due:
            before = {token: seen.state for token, seen in self._answer.items()}
            self.asked, self._ticks = time.time(), time.monotonic()
            try:
                self._answer, self.trouble = self.backend.states(jobs), ""
            except Elsewhere as error:
                self._answer, self.trouble = {}, str(error)
            except ClusterError as error:
                self._answer, self.trouble = {}, f"Slurm does not answer: {error}"
                self.unreachable = isinstance(error, Unreachable)
            same = before == {token: seen.state for token, seen in self._answer.items()}
            self._pause = min(_RARER * self._pause, _RAREST * self.every) if same else self.every
        return {token: self._answer[token] for token in jobs if token in self._answer}


def view(run: Run, queue: Queue, *, thorough: bool = False) -> View:
    """Read the files of a run and ask the queue about the jobs that have not recorded an end.

    A `thorough` question is also about jobs that have recorded an end and may still be leaving, a
    second after it, and about all earlier ones that may be alive: nothing is submitted beside a
    living job.
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
    if thorough:
        _refuse_unreadable(first)
    answer = queue.ask(asked_about)
    left = {token for token, state in answer.items() if not state.alive}
    records = {name: _read_ends(record, left) for name, record in first.items()}
    queue.note_failed({name for name, record in records.items() if record.has_own_failure})
    evidence = {name: record.evidence(needs[name]) for name, record in records.items()}
    if thorough:
        # a result may be gone because `resume` has set it aside; a worker finds a late one
        evidence = {name: each._replace(finished=False) for name, each in evidence.items()}
    observed = observe_all(evidence, answer, queue.asked, busy)
    rest = run.following()
    recent = bool(busy) or _has_just_ended(records)
    said = following(needs, observed, rest.steps, rest.stopped, recent) if rest else {}
    follows = frozenset(name for name, seen in said.items() if seen == FOLLOWS)
    trouble = queue.trouble if asked_about else ""
    return View(records, {**observed, **said}, answer, trouble, busy, follows)


def _has_just_ended(records: Mapping[str, Record]) -> bool:
    """Whether a step has ended a moment ago: its job may be submitting what is left."""
    ends = (
        float(event["time"])
        for record in records.values()
        for event in record.events
        if event["event"] in ENDS
    )
    return max(ends, default=0.0) > time.time() - GRACE


def _refuse_unreadable(records: Mapping[str, Record]) -> None:
    """UserError where nobody can tell what has been submitted: it may be alive."""
    flaws = [flaw for record in records.values() if (flaw := record.folder.submissions_flaw)]
    if flaws:
        raise UserError("\n".join([*flaws, "nothing is done beside jobs that may be alive"]))


def _is_open(each: Submission, record: Record, thorough: bool) -> bool:
    """Whether only the queue can tell how this try is."""
    if each.ended or each.refused:
        return False
    newest = each is record.tries[-1]
    if record.result is not None:
        return thorough and newest
    return bool(thorough or each.cancel_requested) or (newest and not record.has_own_failure)


def _read(folder: StepDir) -> Record:
    tries = folder.submissions()
    failure = folder.failure() if tries else None
    return Record(folder, tries, folder.result(), failure, [])


def _read_ends(record: Record, left: AbstractSet[str]) -> Record:
    """The same with what has happened, and what was written while the queue was asked: ends, and
    which jobs go on for those that have `left` it.
    """
    if record.latest is None:
        return record
    folder, result = record.folder, record.result
    tries = folder.submissions() if record.latest.token in left else record.tries
    if result is None:
        result = folder.result()
    return record._replace(
        tries=tries, result=result, failure=folder.failure(), events=folder.events()
    )
