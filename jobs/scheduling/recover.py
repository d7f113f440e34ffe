"""What an earlier launcher left open: jobs whose submission was never answered are taken over, and
the end of those that were asked to end is written down.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.backends.base import Backend, JobState, StepJob
from jobs.errors import ClusterError, Unreachable
from jobs.healing.remedies import in_force
from jobs.pipeline import Resources
from jobs.scheduling.observe import Queue, View, view
from jobs.scheduling.plan import has_ended
from jobs.step_folder import Submission
from jobs.store import Run


def look_closely(run: Run, backend: Backend) -> View:
    """Where the run stands, with the jobs whose submission was never answered taken over.

    The caller holds the run's lock. Nothing is submitted or ended while the cluster does not answer
    (ClusterError).
    """
    for step in run.steps():
        latest = run.step(step["name"]).latest()
        if latest is None or latest.job or latest.refused or latest.ended:
            continue
        if job := backend.find(step_job(run, step, latest.token)):
            run.step(step["name"]).add_submission(latest.token, job=job)
    queue = Queue(backend)
    seen = view(run, queue, thorough=True)
    if seen.trouble:
        raise (Unreachable if queue.unreachable else ClusterError)(seen.trouble)
    for name, record in seen.records.items():
        for each in record.tries:
            note_end(run, name, each, seen.queue.get(each.token))
    return seen


def note_end(run: Run, name: str, submission: Submission, queue: JobState | None) -> bool:
    """Write down that a job has ended which was asked to; whether that is so."""
    asked = submission.cancel_requested
    ended = queue is not None and asked > 0 and has_ended(queue, time.time() - asked)
    if ended:
        run.step(name).add_submission(submission.token, ended=True)
    return ended


def step_job(run: Run, step: Mapping[str, Any], token: str) -> StepJob:
    """A step of a run, ready to be submitted under a token."""
    folder = run.step(step["name"])
    return StepJob(
        step=step["name"],
        token=token,
        directory=folder.path,
        logs=folder.logs,
        code=run.codes()[-1],
        cwd=Path(run.info()["cwd"]),
        resources=resources(run, step),
    )


def resources(run: Run, step: Mapping[str, Any]) -> Resources:
    """What a step asks for: as the pipeline file has it, with the changes of remedies."""
    asked = in_force({"resources": step["resources"]}, run.step(step["name"]).events())
    return Resources.model_validate(asked["resources"])
