"""What state each step is in, and what is to be submitted: decided here, from data, without I/O.

`run`, `resume`, `--dry-run` and `status` all ask this module.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from jobs.backends import JobState, QueueState

GRACE = 60.0  # seconds that a submitted job may be in neither squeue nor sacct (4 s were seen)


class State(str, Enum):
    """Where a step is."""

    NEW = "new"  # never submitted
    WAITING = "waiting"  # queued behind another step
    QUEUED = "queued"  # queued for resources
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # submitted, left no record, and the cluster does not know it


ACTIVE = frozenset({State.WAITING, State.QUEUED, State.RUNNING})
_STATES = {
    QueueState.WAITING: State.WAITING,
    QueueState.PENDING: State.QUEUED,
    QueueState.RUNNING: State.RUNNING,
    QueueState.FAILED: State.FAILED,
    QueueState.CANCELLED: State.CANCELLED,
}


class Evidence(NamedTuple):
    """What the files say of one step."""

    needs: tuple[str, ...] = ()
    succeeded: bool = False
    failure: str = ""  # of the newest job: "class: message"
    job: str = ""  # id of the newest job
    tried: bool = False  # an intent to submit is on record
    cancelled: bool = False  # by `launch.py cancel`
    age: float = 0.0  # seconds since the newest submission


class Observed(NamedTuple):
    """The state of a step, and why it is so where that needs saying."""

    state: State
    reason: str = ""


class Submit(NamedTuple):
    """Submit `step` behind the steps `after`, none of which has ended."""

    step: str
    after: tuple[str, ...]


def observe(evidence: Evidence, queue: JobState | None) -> Observed:
    """The state of one step: `result.json` beats `failure.json` beats the queue."""
    if evidence.succeeded:
        return Observed(State.SUCCEEDED)
    if not evidence.tried:
        return Observed(State.NEW)
    if evidence.failure:
        return Observed(State.FAILED, evidence.failure)
    if evidence.cancelled:
        return Observed(State.CANCELLED, "by launch.py cancel")
    if not evidence.job:
        return Observed(State.LOST, "its submission was cut short: `resume` looks for the job")
    if queue is None or queue.state is QueueState.UNKNOWN:
        if evidence.age < GRACE:
            return Observed(State.QUEUED, "not in the queue's records yet")
        return Observed(State.LOST, queue.reason if queue else "")
    if queue.state is QueueState.SUCCEEDED:
        return Observed(State.FAILED, "its job ended without a result: see its log")
    return Observed(_STATES[queue.state], queue.reason)


def observe_all(
    evidence: Mapping[str, Evidence], queue: Mapping[str, JobState]
) -> dict[str, Observed]:
    """The state of every step (`evidence` in dependency order, `queue` by job id).

    A step without a record of its own, behind one that has ended without success, never ran.
    """
    states: dict[str, Observed] = {}
    for name, facts in evidence.items():
        seen = observe(facts, queue.get(facts.job))
        ended = seen.state in (State.FAILED, State.CANCELLED, State.LOST)
        if ended and not facts.failure and not facts.cancelled:
            behind = [need for need in facts.needs if _ended(states[need])]
            if behind:
                seen = Observed(State.CANCELLED, f"{behind[0]} has not succeeded")
        states[name] = seen
    return states


def _ended(seen: Observed) -> bool:
    return seen.state not in ACTIVE and seen.state is not State.SUCCEEDED


def plan(needs: Mapping[str, Sequence[str]], states: Mapping[str, State]) -> list[Submit]:
    """What is to be submitted, in order (`needs` of each step, in dependency order).

    Steps that have succeeded or are under way are left alone. A step is submitted behind those of
    its needs that have not succeeded: the id of a finished job never goes into a dependency.
    """
    todo: list[Submit] = []
    for name, before in needs.items():
        renewed = {submit.step for submit in todo}.intersection(before)
        if states[name] is State.SUCCEEDED or (states[name] in ACTIVE and not renewed):
            continue
        after = tuple(need for need in before if states[need] is not State.SUCCEEDED)
        todo.append(Submit(name, after))
    return todo


def restrict(needs: Mapping[str, Sequence[str]], only: Sequence[str]) -> list[str]:
    """The steps `only` and everything they need, in dependency order."""
    wanted = set(only)
    for name in reversed(list(needs)):
        if name in wanted:
            wanted.update(needs[name])
    return [name for name in needs if name in wanted]
