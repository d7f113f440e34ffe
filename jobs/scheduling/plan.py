"""What state each step is in, and what is to be submitted: decided here, from data, without I/O.

`run`, `resume`, `--dry-run` and `status` all ask this module.
"""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from jobs.backends.base import JobState, QueueState
from jobs.program import NAME

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
    QueueState.STUCK: State.CANCELLED,
    QueueState.PENDING: State.QUEUED,
    QueueState.RUNNING: State.RUNNING,
    QueueState.FAILED: State.FAILED,
    QueueState.CANCELLED: State.CANCELLED,
}


class Evidence(NamedTuple):
    """What the files say of one step; from `refused` on of its newest submission."""

    needs: tuple[str, ...] = ()
    succeeded: bool = False
    tried: bool = False  # an intent to submit is on record, and was not refused
    refused: str = ""  # what the cluster said against it
    unreadable: str = ""  # why nobody can tell whether it was tried
    failure: str = ""  # "cause: message"
    undecided: str = ""  # a failure after which the job may begin again
    token: str = ""  # the name of its job
    job: str = ""  # id of its job; empty where the answer to its submission was never recorded
    age: float = 0.0  # seconds since the submission
    asked_to_end: float | None = None  # seconds since `cancel` asked for its end; None: it did not
    ended: bool = False  # it was asked to end, and the cluster has said that it has
    finished: bool = False  # its worker has said so in the last minute; its result comes after that
    began: float = 0.0  # when its worker started, if that runs as far as the files know (s, 1970)


class Observed(NamedTuple):
    """The state of a step, and why it is so where that needs saying."""

    state: State
    reason: str = ""


class Submit(NamedTuple):
    """Submit `step` behind the steps `after`, none of which has ended."""

    step: str
    after: tuple[str, ...]


_CANCELLED = Observed(State.CANCELLED, f"by {NAME} cancel")
FOLLOWS = Observed(State.NEW, "follows by itself: Slurm takes no more jobs of yours for now")
_CUT_SHORT = f"its submission was cut short, and no job of it is known: {NAME} resume"


def observe(evidence: Evidence, queue: JobState | None, asked: float = 0.0) -> Observed:
    """The state of one step: `result.json` beats `failure.json` beats the queue.

    `queue` is the queue's answer at the time `asked`, or None where it gave none.
    """
    if evidence.succeeded:
        return Observed(State.SUCCEEDED)
    if evidence.unreadable:
        return Observed(State.LOST, evidence.unreadable)
    if not evidence.tried:
        reason = f"Slurm refused it: {evidence.refused}" if evidence.refused else ""
        return Observed(State.NEW, reason)
    if evidence.failure:
        return Observed(State.FAILED, evidence.failure)
    if evidence.ended:
        return _CANCELLED
    if queue is None:
        return _by_files(evidence)
    if queue.alive and evidence.began > asked:
        queue = queue._replace(state=QueueState.RUNNING, reason="")
    if evidence.asked_to_end is not None:
        return _ending(evidence.asked_to_end, queue)
    if evidence.undecided:
        return _undecided(evidence.undecided, queue)
    if queue.state is QueueState.UNKNOWN:
        return _unknown(evidence, queue.reason)
    if queue.state is QueueState.SUCCEEDED and evidence.finished:
        return Observed(State.RUNNING, "its job has ended, its result is not seen here yet")
    if queue.state is QueueState.SUCCEEDED:
        return Observed(State.FAILED, "its job ended without a result: see its log")
    return Observed(_STATES[queue.state], queue.reason)


def _by_files(evidence: Evidence) -> Observed:
    """What is left to say while the queue does not answer."""
    asked = "" if evidence.asked_to_end is None else "; it was asked to end"
    state = State.RUNNING if evidence.began else State.QUEUED
    return Observed(state, f"as far as the files say{asked}")


def _undecided(failure: str, queue: JobState) -> Observed:
    """A worker has failed: its job begins again, or ends."""
    if queue.alive:
        return Observed(_STATES[queue.state], f"looks whether it can begin again after {failure}")
    return Observed(State.FAILED, failure)


def has_ended(queue: JobState, asked_to_end: float) -> bool:
    """Whether a job asked to end so many seconds ago is gone: the cluster says so, or has long
    forgotten it.
    """
    return queue.ended or (queue.state is QueueState.UNKNOWN and asked_to_end >= GRACE)


def _ending(seconds: float, queue: JobState) -> Observed:
    """A job that was asked to end is cancelled when the cluster no longer has it, not before."""
    if has_ended(queue, seconds):
        return _CANCELLED
    if queue.alive:
        return Observed(_STATES[queue.state], f"asked to end {seconds:.0f} s ago, and still there")
    return Observed(State.QUEUED, "asked to end; not in the queue's records yet")


def _unknown(evidence: Evidence, reason: str) -> Observed:
    """A job that neither the queue nor the accounts have: too early, or too late."""
    if evidence.age < GRACE and evidence.job:
        return Observed(State.QUEUED, "not in the queue's records yet")
    return Observed(State.LOST, reason if evidence.job else _CUT_SHORT)


def observe_all(
    evidence: Mapping[str, Evidence],
    queue: Mapping[str, JobState],
    asked: float = 0.0,
    busy: str = "",
) -> dict[str, Observed]:
    """The state of every step (`evidence` in dependency order, `queue` by token).

    A step without a record of its own, behind one that has ended without success, never ran. While
    somebody submits the run (`busy`), what has no id yet is on its way.
    """
    states: dict[str, Observed] = {}
    for name, facts in evidence.items():
        seen = observe(facts, queue.get(facts.token), asked)
        ended = seen.state in (State.FAILED, State.CANCELLED, State.LOST)
        if ended and not facts.failure and facts.asked_to_end is None:
            behind = [need for need in facts.needs if _has_ended(states[need])]
            if behind:
                seen = Observed(State.CANCELLED, f"{behind[0]} has not succeeded")
        if busy and not facts.job and seen.state in (State.NEW, State.LOST):
            state = State.QUEUED if facts.tried else State.NEW
            seen = Observed(state, f"being submitted by {busy}")
        elif seen == Observed(State.NEW):
            seen = Observed(State.NEW, f"never submitted: {NAME} resume")
        states[name] = seen
    return states


def _has_ended(seen: Observed) -> bool:
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


def plan_rest(
    needs: Mapping[str, Sequence[str]], states: Mapping[str, State], rest: Collection[str]
) -> list[Submit]:
    """What of the steps that did not fit into the queue can still come, in order.

    That is what has not been submitted, behind nothing that has ended without success.
    """
    fresh = {name for name in rest if states[name] is State.NEW}
    good = {State.SUCCEEDED, *ACTIVE}
    bad = {name for name, state in states.items() if state not in good and name not in fresh}
    out = with_all_behind(bad, needs)
    return [
        Submit(name, tuple(need for need in before if states[need] is not State.SUCCEEDED))
        for name, before in needs.items()
        if name in fresh and name not in out
    ]


def following(
    needs: Mapping[str, Sequence[str]],
    observed: Mapping[str, Observed],
    rest: Collection[str],
    stopped: str,
    recent: bool,
) -> dict[str, Observed]:
    """What is said of the steps that jobs of the run are to submit; none where nobody will.

    Where no job is left, one that has ended a moment ago (`recent`) may still be at it.
    """
    states = {name: seen.state for name, seen in observed.items()}
    names = [submit.step for submit in plan_rest(needs, states, rest)]
    if ACTIVE.intersection(states.values()) or (recent and not stopped):
        return dict.fromkeys(names, FOLLOWS)
    reason = f"it did not fit into the queue, and {stopped or 'nobody has submitted it since'}"
    return dict.fromkeys(names, Observed(State.NEW, f"{reason}: {NAME} resume"))


def restrict(needs: Mapping[str, Sequence[str]], only: Sequence[str]) -> list[str]:
    """The steps `only` and everything they need, in dependency order."""
    wanted = set(only)
    for name in reversed(list(needs)):
        if name in wanted:
            wanted.update(needs[name])
    return [name for name in needs if name in wanted]


def with_all_behind(names: Collection[str], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Some steps and everything that needs them, in dependency order."""
    found: list[str] = []
    for name, before in needs.items():
        if name in names or set(before) & set(found):
            found.append(name)
    return found
