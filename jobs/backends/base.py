"""Where steps run. A backend submits, finds, judges and cancels jobs; it decides nothing.

`slurm` submits submitit's scripts, `local` starts processes on this machine. Both run
`jobs.worker`.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from jobs.pipeline import Resources


class QueueState(str, Enum):
    """What the queue says of one job: an opinion, `result.json` and `failure.json` come first."""

    WAITING = "waiting"  # for another job
    STUCK = "stuck"  # in the queue behind a job that has failed: it will never start
    PENDING = "pending"  # for resources
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # the queue does not know it, or not yet


_ALIVE = frozenset({QueueState.WAITING, QueueState.STUCK, QueueState.PENDING, QueueState.RUNNING})
_ENDED = frozenset({QueueState.SUCCEEDED, QueueState.FAILED, QueueState.CANCELLED})


class JobState(NamedTuple):
    """State of one job, the queue's reason for it, how long it has run (seconds), and its id."""

    state: QueueState
    reason: str = ""
    elapsed: float | None = None
    job: str = ""  # empty where no queue knows the job

    @property
    def alive(self) -> bool:
        """Whether the job is in the queue, runs, or still ends: it may write at any moment."""
        return self.state in _ALIVE

    @property
    def ended(self) -> bool:
        """Whether the queue says that the job is gone; not so where it does not know the job."""
        return self.state in _ENDED


class StepJob(NamedTuple):
    """One step, ready to be submitted; whatever job carries its unique `token` is this one."""

    step: str
    token: str
    directory: Path  # the step's folder
    logs: Path
    code: Path  # the snapshot the job imports its code from
    cwd: Path  # where `run` was called: relative paths of commands mean this
    resources: "Resources"


class SubmitUnclear(Exception):
    """The submission may or may not have been queued: look for its token before a second try."""


class Backend(Protocol):
    """What every cluster can do. A job is ours when it carries our token, whatever its id."""

    every: float  # seconds at least between two questions of somebody who only looks

    def identity(self) -> str:
        """Which scheduler answers here: job ids and process ids mean nothing to any other."""

    def expect_home(self) -> None:
        """Elsewhere where this is not the scheduler that the run belongs to."""

    def submit(self, job: StepJob, after: Sequence[str], behind: Sequence[str] = ()) -> str:
        """Queue `job` until the jobs `after` have succeeded and the jobs `behind` have ended.

        Its id, or SubmitUnclear where nobody knows; SubmitRefused where nothing was queued.
        """

    def find(self, job: StepJob) -> str | None:
        """The id of the job that already carries this token, or None where there is none."""

    def states(self, jobs: Mapping[str, str]) -> dict[str, JobState]:
        """The state of the job of each token (token -> id on record, empty where there is none).

        ClusterError where the scheduler does not answer, or is not the one of this run.
        """

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask for the end of jobs, dependents first; they may go on for a while, to save."""
