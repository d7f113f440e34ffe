"""What Slurm's accounts say of jobs that have run: one sacct call for a whole run."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from jobs.backends.slurm.client import call
from jobs.errors import ClusterError
from jobs.healing.spans import Allocation

_FIELDS = "JobIDRaw,State,Start,End,MaxRSS,JobName"  # a name may hold a |
_KIB = {"": 2**-10, "K": 1, "M": 2**10, "G": 2**20, "T": 2**30}


def allocations(jobs: Mapping[str, str]) -> tuple[list[Allocation], str]:
    """Every stay of these jobs (token -> id) on nodes, and why it is not known, else empty.

    A job that was requeued has one for each stay; the ids of another cluster's jobs are no match.
    """
    known = {job: token for token, job in jobs.items() if job.isdigit()}
    if not known:
        return [], ""
    asked = ["-n", "-P", "-D", "-j", ",".join(known), "-o", _FIELDS]
    try:
        said = call("sacct", *asked)
    except ClusterError as error:
        return [], str(error)
    return [*read(said.splitlines(), known)], ""


def read(lines: Iterable[str], known: Mapping[str, str]) -> Iterator[Allocation]:
    """The stays in what sacct prints, of these jobs (id -> token), each with the most memory that
    one of its steps had.
    """
    rows = [line.split("|", 5) for line in lines if line.count("|") >= 5]
    sizes = [(row[0].partition(".")[0], _time(row[2]), _gigabytes(row[4])) for row in rows]
    for job, state, begin, end, _, name in rows:
        began, ended = _time(begin), _time(end)
        if known.get(job) == name and began is not None:
            mine = [
                size
                for other, at, size in sizes
                if other == job and size and at and began <= at <= (ended or at)
            ]
            word = state.partition(" ")[0]  # CANCELLED by 1234
            yield Allocation(job, began, ended, word, max(mine, default=None))


def _time(text: str) -> float | None:
    """Seconds since 1970 of `2026-11-21T18:10:44`, in this machine's zone; None for `Unknown`."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _gigabytes(text: str) -> float | None:
    """`123456K` as what Slurm calls GB, 1024 MB; None where nothing was measured."""
    found = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return float(found[1]) * _KIB[found[2]] / 2**20 if found and float(found[1]) else None
