"""When a step held nodes, and when it waited for them.

The times of jobs come from Slurm's accounts where these are known; else from what the workers said,
and from when their logs were written last.
"""

import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from jobs.healing.history import Facts
from jobs.healing.spans import Allocation, Start, frontiers
from jobs.step_folder import StepDir, Submission

_BACK = ("REQUEUED", "PREEMPTED", "NODE_FAIL")  # ends after which Slurm puts a job into the queue
_EARLY = 2.0  # s that a worker's clock may be behind Slurm's, whose times are whole seconds
WARNING = "SIGUSR2"  # after which a worker asks to be requeued


class Accounts(NamedTuple):
    """What was asked of the cluster about all jobs of a run."""

    allocations: Sequence[Allocation] = ()
    living: AbstractSet[str] | None = None  # jobs that wait or run, where that is known otherwise
    trouble: str = ""  # why the cluster's accounts are not in it


class Stay(NamedTuple):
    """A stay on nodes with its starts, each with the frontier that it met."""

    allocation: Allocation
    held: list[tuple[Start, int]]

    @property
    def is_living(self) -> bool:
        """Whether it still holds its nodes."""
        return self.allocation.end is None


def find(folder: StepDir, facts: Facts, accounts: Accounts) -> list[Stay]:
    """The step's stays on nodes, oldest first."""
    jobs = {each.job for each in facts.tries}
    known = [each for each in accounts.allocations if each.job in jobs]
    held: dict[int, list[tuple[Start, int]]] = {place: [] for place in range(len(known))}
    homeless: list[tuple[Start, int]] = []
    for history in facts.histories:
        for start, frontier in zip(history, frontiers(history), strict=True):
            held.get(_home(start, known), homeless).append((start, frontier))
    found = [Stay(_widened(known[place], mine), mine) for place, mine in held.items()]
    alive = facts.newest in (accounts.living or ())
    groups = [*_groups(homeless)]
    for group in groups:
        still = alive and group is groups[-1] and group[-1][0].job == facts.newest
        found.append(Stay(_guessed(folder, group, still), group))
    return sorted(found, key=lambda stay: stay.allocation.begin)


def _home(start: Start, known: Sequence[Allocation]) -> int:
    """The place of the allocation in which a start was; -1 where Slurm has not told of it."""
    fit = [
        (each.begin, place)
        for place, each in enumerate(known)
        if each.job == start.job and each.begin <= start.time + _EARLY
    ]
    return max(fit, default=(0.0, -1))[1]


def _widened(stay: Allocation, held: Sequence[tuple[Start, int]]) -> Allocation:
    """Slurm's times are whole seconds: what a worker said is inside."""
    if not held:
        return stay
    end = None if stay.end is None else max(stay.end, held[-1][0].last)
    return stay._replace(begin=min(stay.begin, held[0][0].time), end=end)


def _groups(homeless: Sequence[tuple[Start, int]]) -> Iterator[list[tuple[Start, int]]]:
    """Starts of one stay: of one job, started by Slurm as often; older records do not say that."""
    group: list[tuple[Start, int]] = []
    for each in homeless:
        key = each[0].job, each[0].restart
        if group and (None in key or key != (group[-1][0].job, group[-1][0].restart)):
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _guessed(folder: StepDir, group: Sequence[tuple[Start, int]], alive: bool) -> Allocation:
    """A stay as the workers tell of it; one that was killed lasted until its log fell silent."""
    first, last = group[0][0], group[-1][0]
    if alive:
        return Allocation(first.job, first.time)
    written = None if last.end else folder.last_written(last.job)
    return Allocation(first.job, first.time, max(last.last, written or 0.0))


def waits(
    tries: Sequence[Submission],
    stays: Sequence[Allocation],
    ready: float,
    now: float,
    over: bool,
) -> float:
    """Seconds in which a step could have run and was in the queue.

    `ready`: when the last step that it needs had ended, inf before that. `over`: its newest job is
    in the queue no more.
    """
    waited = 0.0
    jobs = {each.token: each.job for each in tries}
    freed = {stay.job: stay.end for stay in stays}  # when a job held nodes last
    for each in tries:
        since = max(each.time, ready, freed.get(jobs.get(each.continues, "")) or 0.0)
        for stay in [stay for stay in stays if each.job and stay.job == each.job]:
            waited += max(0.0, stay.begin - since)
            since = math.inf if stay.end is None else stay.end
        if each.cancel_requested:
            waited += max(0.0, each.cancel_requested - since)
        elif each is tries[-1] and not over and not each.refused:
            waited += max(0.0, now - since)
    return waited


def has_left(facts: Facts, stays: Sequence[Stay], living: AbstractSet[str] | None) -> bool:
    """Whether the newest job of a step has left the queue, as far as that is known."""
    if facts.result:
        return True
    if living is not None:
        return facts.newest not in living
    mine = [stay for stay in stays if stay.allocation.job == facts.newest]
    if not mine:
        return False
    last, held = mine[-1]
    asked = bool(held) and held[-1][0].facts.get("signal") == WARNING
    return last.state not in _BACK if last.state else not asked
