"""When the processes of a step have ended badly: why, and whether they begin again in the same job.

The batch script runs this on the first node after srun, the local keeper after its workers. By then
nobody else writes into the step's folder, and everything there is to know has been written: what a
rank has recorded, how srun ended, the last lines of the logs.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.causes import CAUSES
from jobs.errors import Superseded
from jobs.fence import Attempt, Fence
from jobs.healing import nodes, remedies
from jobs.healing.cause import SECONDARY, cause_of_end, failure_record, job_had_ended
from jobs.healing.leaving import hand_over
from jobs.healing.remedies import GivenUp, Remedy
from jobs.job import SAVED
from jobs.step_folder import StepDir
from lact_asr.utils.errors import DataError

AGAIN = 86  # exit status that asks the batch script to run the step once more
PAGE = "docs/when-things-go-wrong.md"
_TAIL = 1 << 14  # bytes at the end of a log that are looked at


def heal(step: StepDir, attempt: Attempt, status: int) -> int:
    """AGAIN, or the status with which the job ends; what was found is on record.

    `status` is that of srun, or of the first worker to end badly.
    """
    if step.result() is not None:
        return 0
    latest = step.latest()
    if latest and latest.continues == attempt.token:
        return 0  # all that waited for this job waits for the one that goes on for it
    if status in (0, SAVED) or (latest and latest.cancel_requested):
        return status
    try:
        Fence(step, attempt).check()
    except Superseded:
        return status
    words = _words(step, attempt)
    if job_had_ended(attempt.job, words):
        print(f"{step.name}: its job was ended before it began", flush=True)
        return status
    failure = _failure(step, attempt, status, words)
    if failure["cause"] == "node_failed":
        nodes.note_own(step, attempt)
    events = step.events()
    try:
        if _gets_more_memory(step, attempt, failure, events):
            return 0
        remedy = _answer(step, attempt, failure, events)
    except GivenUp as tried:
        _give_up(step, attempt, failure, str(tried))
        return status
    _begin_again(step, attempt, remedy, events)
    return AGAIN


def _gets_more_memory(
    step: StepDir,
    attempt: Attempt,
    failure: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
) -> bool:
    """Whether a step that had too little memory goes on in a job with more; GivenUp where that was
    tried often enough.
    """
    on_slurm = os.environ.get("SLURM_JOB_ID") == attempt.job
    if failure["cause"] != "out_of_memory_host" or not on_slurm:
        return False
    declared = _job(step).get("remedies")
    remedies.taken_before(failure["cause"], _own(step, attempt, events), declared)
    if refusal := hand_over(step, "--out-of-memory", failure["message"]):
        step.add_event("not_handed_over", {"job": attempt.job, "reason": refusal})
        print(f"{step.name} does not get more memory: {refusal}", flush=True)
    return not refusal


def _answer(
    step: StepDir,
    attempt: Attempt,
    failure: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
) -> Remedy:
    """The remedy for a failure; GivenUp where there is none."""
    job, own = _job(step), _own(step, attempt, events)
    settings = remedies.in_force(job["settings"], events)
    declared = job.get("remedies")
    return remedies.answer(failure["cause"], failure["message"], settings, own, declared)


def _job(step: StepDir) -> dict[str, Any]:
    """job.json; GivenUp without it: the worker has not come far then, and has said so."""
    try:
        return step.job()
    except (OSError, ValueError, DataError):
        raise GivenUp from None


def _own(
    step: StepDir, attempt: Attempt, events: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """What has happened in a job and in those that it goes on for."""
    jobs = {None, *step.continued(attempt.job)}
    return [event for event in events if event.get("job") in jobs]


def _failure(step: StepDir, attempt: Attempt, status: int, words: str) -> dict[str, Any]:
    """The failure that a rank has recorded, unless it died of another one's death; else the one
    that the end of the processes tells of, which is recorded now.
    """
    recorded = step.failure()
    own = recorded is not None and recorded["job"] == attempt.job
    if recorded is not None and own and recorded["cause"] not in SECONDARY:
        return recorded
    cause, message = cause_of_end(status, words)
    if recorded is not None and own and cause in ("error", recorded["cause"]):
        return recorded
    step.add_event("failed", {"job": attempt.job, "cause": cause, "message": message})
    return failure_record(attempt, None, cause, message)


def _words(step: StepDir, attempt: Attempt) -> str:
    """The end of what every rank of this start has written to its log."""
    sizes = (step.claim() or {}).get("log_sizes", {})
    said = []
    for path in step.logs_of_job(attempt.job):
        with path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(size - _TAIL, min(sizes.get(path.name, 0), size)))
            said.append(log.read().decode(errors="replace"))
    return "\n".join(said)


def _give_up(step: StepDir, attempt: Attempt, failure: Mapping[str, Any], tried: str) -> None:
    """The failure stays; what was tried against it becomes a part of it."""
    said = f"{failure['message']} ({tried})" if tried else failure["message"]
    step.decide_failure({**failure, "message": said})
    if tried:
        step.add_event("given_up", {"job": attempt.job, "cause": failure["cause"], "tried": tried})
    cause = failure["cause"]
    if failure["rank"] is None or tried:  # a worker has said the rest itself
        print(f"{step.name} failed: {cause}: {said}", flush=True)
    left = f"{CAUSES[cause].person} ({PAGE}#{cause})" if cause in CAUSES else PAGE
    print(f"{step.name}: what is left to do: {left}", flush=True)


def _begin_again(
    step: StepDir, attempt: Attempt, remedy: Remedy, events: Sequence[Mapping[str, Any]]
) -> None:
    step.add_event(remedies.EVENT, remedies.event_of(remedy, attempt.job, events))
    step.forget_failure()
    step.forget_ranks_done(str(attempt))
    what = remedies.in_words(remedy.changes) or "as it was"
    print(f"{step.name} begins again, {what}: {remedy.cause}: {remedy.reason}", flush=True)
    time.sleep(remedy.pause)


def main() -> None:
    """The step's folder and the status of srun are on the command line."""
    folder, status = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    if not folder.exists():  # the log, which was open, has gone with it
        said = f"{folder} is not there any more: was the run moved? Give it back, then `resume`"
        sys.exit(f"{folder.name} failed: missing_file: {said}")
    sys.exit(heal(StepDir(folder), Attempt.present(), status))
