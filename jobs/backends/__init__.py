"""Where steps run. A backend submits, finds, judges and cancels jobs; it decides nothing.

`slurm` goes through submitit, `local` starts processes on this machine. Both run the same
`jobs.worker.Worker`.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from jobs.spec import Resources


class QueueState(str, Enum):
    """What the queue says of one job: an opinion, `result.json` and `failure.json` come first."""

    WAITING = "waiting"  # for another job
    PENDING = "pending"  # for resources
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # the queue does not know it, or not yet


class JobState(NamedTuple):
    """State of one job, the queue's reason for it, and how long it has run (seconds)."""

    state: QueueState
    reason: str = ""
    elapsed: float | None = None


class StepJob(NamedTuple):
    """One step, ready to be submitted; whatever job carries its unique `token` is this one."""

    step: str
    token: str
    directory: Path  # the step's folder
    logs: Path
    code: Path  # the snapshot the job imports its code from
    cwd: Path  # where `launch.py` was called: relative paths of commands mean this
    resources: "Resources"


class SubmitUnclear(Exception):
    """The submission may or may not have been queued: look for its token before a second try."""


class Backend(Protocol):
    """What every cluster can do."""

    def submit(self, job: StepJob, after: Sequence[str]) -> str:
        """Queue `job` behind the jobs `after`; its id, or `SubmitUnclear` where nobody knows."""

    def find(self, job: StepJob) -> str | None:
        """The id of the job that already carries this token, made ready to run, or None."""

    def states(self, submitted: Mapping[str, float]) -> dict[str, JobState]:
        """The state of each job id in `submitted` (id -> time of submission, s since 1970)."""

    def cancel(self, ids: Sequence[str]) -> None:
        """Take jobs out of the queue or end them; the ids come with dependents first."""
