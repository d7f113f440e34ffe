"""A step goes on in another job, which the job that has to leave has submitted in its place.

The successor waits for the end of the old job (afterany), and what waited for the old one is made
to wait for the successor before the old one ends. It may be cut off anywhere: the intent is on disk
first, the id of the successor last, and until then the step is the old job's. If that begins again,
it looks for what is in the queue, and does the rest; if it gets to the end of the step instead, the
successor finds the result and leaves, and what waits for it runs.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from jobs.backends.base import Backend, StepJob
from jobs.backends.slurm.dependents import repoint
from jobs.errors import ClusterError
from jobs.fence import Attempt
from jobs.healing.remedies import EVENT, MEMORY, Remedy, event_of, in_words
from jobs.scheduling import environment
from jobs.scheduling.cancel import Living, end, settle
from jobs.scheduling.memory import with_more_memory
from jobs.scheduling.recover import step_job
from jobs.scheduling.submit import new_token, queue
from jobs.snapshot import ROOT
from jobs.step_folder import StepDir, Submission
from jobs.store import Run

_LOCKED = 10.0  # seconds for which a launcher that holds the lock is waited for: a job has little


def relay(run: Run, backend: Backend, name: str, old: Attempt, out_of_memory: str = "") -> str:
    """Let a step go on behind the job that calls this; a sentence for its log. With more memory,
    where that is how it ran out of it (`out_of_memory`).

    ClusterError where it does not: then all is as it was, or nobody can tell and a later call will.
    """
    with run.lock(_LOCKED):
        run = Run(run.path)  # `resume` may have changed it meanwhile
        folder = run.step(name)
        if (latest := folder.latest()) and latest.continues == old.token:
            return f"{name} goes on as job {latest.job}"  # an earlier call got as far as this
        _expect_newest(latest, old)
        environment.restore(environment.of_batch_script())
        step = next(step for step in run.steps() if step["name"] == name)
        remedy = with_more_memory(run, step, old, out_of_memory) if out_of_memory else None
        job, count = _put_in_place(run, backend, folder, old, _once_more(run, step, remedy))
        if remedy:
            folder.add_event(EVENT, event_of(remedy, old.job, folder.events()))
    with_more = f" with {in_words(remedy.changes)}" if remedy else ""
    waited = f"; {count} that waited for job {old.job} wait for it now" if count else ""
    return f"{name} goes on as job {job}{with_more}{waited}"


def _put_in_place(
    run: Run, backend: Backend, folder: StepDir, old: Attempt, once_more: StepJob
) -> tuple[str, int]:
    """Bring the successor into the queue, and behind it what waited; its id, and how many."""
    token, job = _find(backend, folder, old, once_more) or _submit(backend, folder, old, once_more)
    try:
        count = repoint(old.job, job)
    except ClusterError:
        _take_back(run, backend, folder, old.job, token, job)
        raise
    folder.add_submission(token, job=job)
    return job, count


def _expect_newest(latest: Submission | None, old: Attempt) -> None:
    if latest is None or (latest.token, latest.job) != (old.token, old.job):
        raise ClusterError("this job is not the one on record as the newest of its step")
    if latest.cancel_requested:
        raise ClusterError("the end of this job was asked for")


def _once_more(run: Run, step: Mapping[str, Any], remedy: Remedy | None) -> StepJob:
    """The step once more, under a new token, with the code of this job."""
    job = step_job(run, step, new_token(run, step["name"]))._replace(code=ROOT)
    if remedy is None:
        return job
    more = {"memory_gb": remedy.changes[MEMORY][1]}
    return job._replace(resources=job.resources.model_copy(update=more))


def _find(
    backend: Backend, folder: StepDir, old: Attempt, once_more: StepJob
) -> tuple[str, str] | None:
    """Token and id of the successor that an earlier call has brought into the queue, if one has."""
    for each in folder.submissions():
        if each.continues != old.token or each.refused or each.cancel_requested:
            continue
        backend.find(once_more._replace(token=each.token))  # waits for an sbatch that is at it
        if (seen := backend.states({each.token: ""})[each.token]).alive:
            return each.token, seen.job
    return None


def _submit(backend: Backend, folder: StepDir, old: Attempt, once_more: StepJob) -> tuple[str, str]:
    folder.add_submission(once_more.token, continues=old.token)
    return once_more.token, queue(backend, folder, once_more, [], [old.job])


def _take_back(run: Run, backend: Backend, folder: StepDir, old: str, token: str, job: str) -> None:
    """As if there had been no successor: what has been moved goes back, then it leaves the queue.

    Where that is not to be had either, it stays, behind the old job.
    """
    with contextlib.suppress(ClusterError):
        repoint(job, old)
        submission = next(each for each in folder.submissions() if each.token == token)
        living = [Living(folder.name, submission, job)]
        end(run, backend, living)
        settle(run, backend, living)
