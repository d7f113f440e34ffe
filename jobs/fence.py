"""Which start of a step may write: the newest one.

An attempt is one start of a step: a job, and how often Slurm has started that job before. A node
that Slurm has given up may live on, with the step on it, while the job is started again elsewhere:
both would train in one folder. So rank 0 claims the folder for its attempt, and whoever finds the
claim of a newer attempt before it writes leaves its place.

What it has begun to write when the claim comes still lands, a line or a whole checkpoint: seconds
before the newer one, which loads its libraries first, looks for any. A lock around every write
would keep that out too; but a node that dies with it would keep out the newer one wherever locks
outlive who held them, as over NFS 3.
"""

import os
import time
from typing import NamedTuple

from jobs.errors import Superseded
from jobs.step_folder import StepDir
from lact_asr.utils.locks import turn


class Attempt(NamedTuple):
    """One start of a step."""

    token: str  # of the submission: the job's name
    job: str
    restart: int  # how often Slurm had started this job before

    @classmethod
    def present(cls) -> "Attempt":
        """The one that this process belongs to, from Slurm's variables or the local keeper's."""
        if "SLURM_JOB_ID" in os.environ:
            restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
            return cls(os.environ.get("SLURM_JOB_NAME", ""), os.environ["SLURM_JOB_ID"], restart)
        job = os.environ.get("TRAINYARD_JOB", "")
        return cls(job.partition(".")[2], job, 0)  # 4711.train.3fa9c2e1

    def __str__(self) -> str:
        return f"{self.job}.{self.restart}"


class Fence:
    """Keeps older attempts from writing into a step's folder."""

    def __init__(self, step: StepDir, attempt: Attempt) -> None:
        self.step, self.attempt = step, attempt

    def enter(self, claim: bool) -> None:
        """Begin this attempt, with a claim by rank 0; Superseded where there is a newer one.

        An sbatch that outlives a killed launcher, or a slow controller, may bring a job into the
        queue after `resume` had looked for it and submitted the step anew: that one is newer, even
        before it has started. A submission that the cluster has refused is no job.
        """
        self._record_id()
        tokens = [each.token for each in self.step.submissions() if not each.refused]
        if self.attempt.token in tokens[:-1]:
            raise Superseded("was submitted anew")
        if not claim:
            return self.check()
        with turn(self.step.claim_lock):  # without flock two would have to meet in 10 ms
            self.check()
            host, now = os.uname().nodename, round(time.time(), 3)
            logs = {
                file.name: file.stat().st_size for file in self.step.logs_of_job(self.attempt.job)
            }
            self.step.write_claim(
                {**self.attempt._asdict(), "host": host, "time": now, "log_sizes": logs}
            )

    def _record_id(self) -> None:
        """A job that goes on for another one takes its place, if need be by itself: who submitted
        it may have died before its id was on record.
        """
        for each in self.step.submissions():
            unknown = each.continues and not each.job and not each.cancel_requested
            if each.token == self.attempt.token and unknown:
                self.step.add_submission(each.token, job=self.attempt.job)

    def check(self) -> None:
        """Called right before anything is written: Superseded where a newer attempt has begun."""
        claim = self.step.claim()
        if claim is None:
            return
        other = Attempt(claim["token"], claim["job"], claim["restart"])
        if other != self.attempt and self._order(other) > self._order(self.attempt):
            start = f"start {other.restart + 1} of job {other.job}"
            raise Superseded(f"goes on elsewhere ({start} on {claim['host']})")

    def _order(self, attempt: Attempt) -> tuple[int, int, int]:
        """Later attempts are larger. A token that nobody has written down, or whose line has not
        reached this node yet, is the newest; `submit_all.sh` called twice uses one token twice.
        """
        tokens = [submission.token for submission in self.step.submissions()]
        place = tokens.index(attempt.token) if attempt.token in tokens else len(tokens)
        number = int(attempt.job) if attempt.job.isdigit() else 0
        return place, number, attempt.restart
