"""Where a run stands: what the files say of each step, then what the queue says of the rest."""

import time

from jobs.backends import Backend, JobState
from jobs.plan import Evidence, Observed, observe_all
from jobs.store import Run, StepDir


def evidence(run: Run) -> dict[str, Evidence]:
    """What the files say of every step, in dependency order."""
    found = {}
    for step in run.steps():
        folder = run.step(step["name"])
        found[step["name"]] = _evidence(folder, tuple(step["needs"]))
    return found


def _evidence(folder: StepDir, needs: tuple[str, ...]) -> Evidence:
    latest, failure = folder.latest(), folder.failure()
    if latest is None:
        return Evidence(needs=needs, succeeded=folder.result() is not None)
    current = failure is not None and failure["job"] == latest.job
    return Evidence(
        needs=needs,
        succeeded=folder.result() is not None,
        failure=f"{failure['class']}: {failure['message']}" if failure and current else "",
        job=latest.job,
        tried=True,
        cancelled=latest.cancelled,
        age=time.time() - latest.time,
    )


def ask(run: Run, backend: Backend) -> dict[str, JobState]:
    """The queue's opinion of every job whose step has not recorded its end."""
    open_jobs = {}
    for step in run.steps():
        folder = run.step(step["name"])
        latest = folder.latest()
        if latest and latest.job and not latest.cancelled and folder.result() is None:
            open_jobs[latest.job] = latest.time
    return backend.states(open_jobs) if open_jobs else {}


def states(run: Run, backend: Backend) -> tuple[dict[str, Observed], dict[str, JobState]]:
    """The state of every step, and what the queue said."""
    queue = ask(run, backend)
    return observe_all(evidence(run), queue), queue
