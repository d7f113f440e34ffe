"""What Slurm's accounts say of jobs that have run: one sacct call for a whole run."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from jobs.backends.slurm.client import call, seconds
from jobs.errors import ClusterError
from jobs.healing.spans import Allocation

_FIELDS = "JobIDRaw,State,Start,End,TotalCPU,MaxRSS,JobName"  # a name may hold a |
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
    return [*_read(said.splitlines(), known)], ""


def _read(lines: Iterable[str], known: Mapping[str, str]) -> Iterator[Allocation]:
    """The lines of jobs, each with what those of its steps say about memory."""
    fields = [line.split("|", 6) for line in lines if line.count("|") >= 6]
    memory: dict[tuple[str, str], float] = {}  # by job and end of the stay: steps end with it
    for job, _, begin, _, _, most, _ in fields:
        if "." in job and (size := _gigabytes(most)) is not None:
            key = job.partition(".")[0], begin
            memory[key] = max(size, memory.get(key, 0.0))
    for job, state, begin, end, processor, _, name in fields:
        began = _time(begin)
        if known.get(job) == name and began is not None:
            ended = _time(end)
            sizes = [
                size
                for (other, at), size in memory.items()
                if other == job and _within(_time(at), began, ended)
            ]
            yield Allocation(
                job,
                began,
                ended,
                state.partition(" ")[0],  # CANCELLED by 1234
                max(sizes, default=None),
                seconds(processor.partition(".")[0]) or None,
            )


def _within(moment: float | None, begin: float, end: float | None) -> bool:
    return moment is not None and begin <= moment and (end is None or moment <= end)


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
