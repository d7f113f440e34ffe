"""Where a run stands: what the files say of each step, and what the queue says of the rest.

Each file is read once. The ends of steps are read after the queue was asked: a job that the queue
calls ended has written its end by then.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from jobs.backends import Backend, JobState
from jobs.plan import Evidence, Observed, observe_all
from jobs.store import Run, StepDir, Submission


class Record(NamedTuple):
    """What the files of one step say."""

    folder: StepDir
    tries: list[Submission]  # oldest first
    result: dict[str, Any] | None
    failure: dict[str, Any] | None

    @property
    def latest(self) -> Submission | None:
        """The newest try, or None for a step never submitted."""
        return self.tries[-1] if self.tries else None

    def evidence(self, needs: tuple[str, ...]) -> Evidence:
        """The same in the words of the plan."""
        latest, failure = self.latest, self.failure
        if latest is None:
            return Evidence(needs=needs, succeeded=self.result is not None)
        current = failure is not None and failure["job"] == latest.job
        return Evidence(
            needs=needs,
            succeeded=self.result is not None,
            failure=f"{failure['class']}: {failure['message']}" if failure and current else "",
            job=latest.job,
            tried=True,
            cancelled=latest.cancelled,
            age=time.time() - latest.time,
        )


class View(NamedTuple):
    """A run at one moment: records, states and what the queue said, by step or by job id."""

    records: Mapping[str, Record]
    observed: Mapping[str, Observed]
    queue: Mapping[str, JobState]


def view(run: Run, backend: Backend) -> View:
    """Read the files of a run and ask the queue about the jobs that have not recorded an end."""
    needs = {step["name"]: tuple(step["needs"]) for step in run.steps()}
    tries, results = {}, {}
    for name in needs:
        folder = run.step(name)
        tries[name], results[name] = folder.submissions(), folder.result()
    queue = _ask(tries, results, backend)
    records = {}
    for name in needs:
        folder, result = run.step(name), results[name]
        records[name] = Record(
            folder=folder,
            tries=tries[name],
            result=folder.result() if result is None and tries[name] else result,
            failure=folder.failure() if result is None and tries[name] else None,
        )
    evidence = {name: record.evidence(needs[name]) for name, record in records.items()}
    return View(records, observe_all(evidence, queue), queue)


def _ask(
    tries: Mapping[str, list[Submission]], results: Mapping[str, object], backend: Backend
) -> dict[str, JobState]:
    """The queue's opinion of every newest job whose step has not recorded its success."""
    newest = [made[-1] for name, made in tries.items() if made and results[name] is None]
    submitted = {each.job: each.time for each in newest if each.job and not each.cancelled}
    return backend.states(submitted) if submitted else {}
