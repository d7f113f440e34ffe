"""One declared change for each cause: decided here, from data, without I/O.

A remedy is an event of the step: cause, reason, and each changed setting with its value before and
after. These events are the only record: the settings in force are those of job.json with the
changes of all remedies laid over them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jobs.causes import CAUSES
from jobs.reading.paths import Place, replace, walk

EVENT = "remedy"
_BUDGETS = ("batch_seconds", "batch_utterances", "batch_tokens")  # what a micro-batch may hold
_SMALLEST = 2  # of a budget: half of less holds no utterance or text
_LATER = ("port_in_use", "slurm_unreachable")  # causes that pass: tried again after a pause
_ANYWHERE = ("out_of_memory_host",)  # a step without batches has another remedy: more memory
_PAUSE = 2.0  # seconds before the second try at these; doubled each time
MEMORY = "resources.memory_gb"  # the place of what was asked for, among the changes of a remedy
Changes = dict[str, tuple[Any, Any]]  # "training.optim.learning_rate" -> (before, after)


class Remedy(NamedTuple):
    """What is done about a failure, inside the same job."""

    cause: str
    reason: str
    changes: Changes
    pause: float = 0.0  # seconds before the step begins again


class GivenUp(Exception):
    """No remedy is left; the message says what was tried."""


def answer(
    cause: str,
    reason: str,
    settings: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    declared: Mapping[str, int] | None,
) -> Remedy:
    """The remedy for a failure of a step with these settings in force; GivenUp where none is left.

    `events` are those of the present submission. What changes settings may be done so often in
    all, what only begins again so often without getting further in between.
    """
    change = _CHANGES.get(cause, (None, ()))[0]
    before = taken_before(cause, events, declared)
    changes = change(settings) if change else {}
    if change and not changes:
        raise GivenUp("no setting of this step could be changed to mend that")
    pause = _PAUSE * 2 ** len(before) if cause in _LATER else 0.0
    return Remedy(cause, reason, changes, pause)


def taken_before(
    cause: str, events: Sequence[Mapping[str, Any]], declared: Mapping[str, int] | None
) -> list[Mapping[str, Any]]:
    """The remedies for a cause that count for its limit; GivenUp where that is reached."""
    limit = limit_of(cause, declared)
    before = [each for each in events if each["event"] == EVENT and each.get("cause") == cause]
    if cause not in _CHANGES:
        here = position(events)
        before = [each for each in before if each.get("position") == here]
    if len(before) >= limit:
        raise GivenUp(_what_was_tried(before, limit))
    return before


def event_of(remedy: Remedy, job: str, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is written down of a remedy of a job."""
    return {
        "job": job,
        "cause": remedy.cause,
        "reason": remedy.reason,
        "changes": remedy.changes,
        "position": position(events),
    }


def limit_of(cause: str, declared: Mapping[str, int] | None) -> int:
    """How often a cause is answered: never where nothing is declared to be (`remedies: none`), else
    as declared, else as the table has it.
    """
    if declared is not None and not declared:
        return 0
    return (declared or {}).get(cause, CAUSES[cause].retries)


def in_force(settings: dict[str, Any], events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings with the changes of all remedies. Where a person has changed one of a remedy's
    settings since, that remedy and all later ones of these settings are void.
    """
    void: set[str] = set()
    for event in events:
        changes, present = changes_of(event), dict(walk(settings))
        known = all(present.get(_place(dotted)) == old for dotted, (old, _) in changes.items())
        if not known or void & changes.keys():
            void |= changes.keys()
            continue
        for dotted, (_, new) in changes.items():
            settings = replace(settings, _place(dotted), new)
    return settings


def changes_of(event: Mapping[str, Any]) -> Changes:
    """The changes that an event has brought; none where it is of another kind, or damaged."""
    found = event.get("changes") if event["event"] == EVENT else None
    if not isinstance(found, dict):
        return {}
    return {
        dotted: (pair[0], pair[1])
        for dotted, pair in found.items()
        if isinstance(pair, list) and [type(each) in (int, float) for each in pair] == [True, True]
    }


def position(events: Sequence[Mapping[str, Any]]) -> float:
    """How far the work is saved: the step of the newest checkpoint, -1 before the first."""
    steps = [event.get("step") for event in events if event["event"] == "checkpoint"]
    return max((step for step in steps if isinstance(step, (int, float))), default=-1)


def in_words(changes: Changes) -> str:
    """`training.batch_seconds: 20 -> 10, training.accumulate: 1 -> 2`."""
    return ", ".join(f"{place}: {old:g} -> {new:g}" for place, (old, new) in changes.items())


def defaults(places: Collection[str]) -> dict[str, int]:
    """How often a step whose settings have these places heals itself, by cause."""
    found = {cause: about.retries for cause, about in CAUSES.items() if about.retries}
    return {
        cause: often
        for cause, often in found.items()
        if cause not in _CHANGES
        or cause in _ANYWHERE
        or any(place.endswith(_CHANGES[cause][1]) for place in places)
    }


def _what_was_tried(before: Sequence[Mapping[str, Any]], limit: int) -> str:
    if not before:
        return ""
    tried = "; ".join(in_words(changes_of(each)) or "began again" for each in before)
    return f"tried {len(before)} of {limit} times: {tried}"


def _halve_batches(settings: Mapping[str, Any]) -> Changes:
    """Half as much in a micro-batch; where training adds them up, twice as many: the same step."""
    values, changes = dict(walk(settings)), {}
    for place, value in values.items():
        if place[-1] in _BUDGETS and value is not None and value >= _SMALLEST:
            changes[_dotted(place)] = (value, value // 2 if isinstance(value, int) else value / 2)
            beside = (*place[:-1], "accumulate")
            if beside in values:
                changes[_dotted(beside)] = (values[beside], values[beside] * 2)
    return changes


def _slow_down(settings: Mapping[str, Any]) -> Changes:
    """Half the learning rate and half the largest gradient norm."""
    return {
        _dotted(place): (value, value / 2)
        for place, value in walk(settings)
        if place[-2:] in (("optim", "learning_rate"), ("optim", "clip_norm"))
    }


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


def _place(dotted: str) -> Place:
    return tuple(dotted.split("."))


# the change that answers a cause, and the endings of the settings that it changes
_CHANGES: dict[str, tuple[Callable[[Mapping[str, Any]], Changes], tuple[str, ...]]] = {
    "out_of_memory_gpu": (_halve_batches, _BUDGETS),
    "out_of_memory_host": (_halve_batches, _BUDGETS),
    "diverged": (_slow_down, ("optim.learning_rate",)),
}
