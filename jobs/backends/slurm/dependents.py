"""Jobs that wait for another one: made to wait for the job that goes on in its place."""

import re
from collections.abc import Iterator

from jobs.backends.slurm.client import call
from jobs.errors import ClusterError, Unreachable
from jobs.store import user


def repoint(old: str, new: str) -> int:
    """What waits for job `old` waits for job `new` from now on, but for `new` itself; how many jobs
    that are.

    ClusterError where one is left that does not: of another user, or where Slurm refuses.
    """
    count, trouble = 0, ""
    for job, owner, condition in _waiting(old, new):
        if owner != user():
            raise ClusterError(f"job {job} of {owner} waits for job {old}")
        after = re.sub(rf"(?<=:){old}\b", new, condition)
        try:
            call("scontrol", "update", f"jobid={job}", f"dependency={after}")
            count += 1
        except Unreachable:
            raise
        except ClusterError as error:  # it may have been cancelled meanwhile: who is left, counts
            trouble = str(error)
    if left := [job for job, _, _ in _waiting(old, new)]:
        raise ClusterError(f"{', '.join(left)} still wait for job {old}: {trouble or 'no reason'}")
    return count


def _waiting(old: str, new: str) -> Iterator[tuple[str, str, str]]:
    """Id, user and condition of the jobs but `new` that wait for job `old`."""
    for line in call("squeue", "-a", "-h", "-t", "PENDING", "-o", "%A|%u|%E").splitlines():
        job, owner, said = [*line.split("|", 2), "", ""][:3]
        condition = re.sub(r"\(\w+\)", "", said)  # afterok:7(unfulfilled),afterok:8(unfulfilled)
        if job != new and re.search(rf"(?<=:){old}\b", condition):
            yield job, owner, condition
