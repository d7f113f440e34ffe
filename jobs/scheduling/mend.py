"""A run that goes on with other settings: what differs, what that touches, and what is kept.

A step that has succeeded is kept where neither it nor anything before it is touched. One that has
not goes on from its checkpoint with the new settings. What is touched although it had succeeded,
and what is asked for with `--redo`, is done anew, with all that is behind it; what it had done is
set aside, not deleted.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from jobs import gate, kinds
from jobs.backends.base import Backend, QueueState
from jobs.errors import ClusterError, UserError, nearest
from jobs.pipeline import Pipeline
from jobs.program import NAME
from jobs.reading.former import with_new_names
from jobs.reading.paths import walk
from jobs.reading.references import fill_references
from jobs.scheduling.cancel import Living, alive, end, settle
from jobs.scheduling.observe import Record, View
from jobs.scheduling.plan import with_all_behind
from jobs.scheduling.recover import look_closely
from jobs.store import Run

Step = Mapping[str, Any]  # as run.json has it
Results = Mapping[str, Mapping[str, Any] | None]  # of each step, None where it has none


class Mending(NamedTuple):
    """What is to be different about a run."""

    steps: list[dict[str, Any]]  # all of them, as run.json will have them
    changed: dict[str, list[str]]  # step -> `training.max_steps: 100 -> 200`, one line a value
    added: list[str]
    removed: list[str]
    anew: list[str]  # done again from the beginning, in the order of the run

    @property
    def lines(self) -> list[str]:
        """The difference, for people."""
        return [
            *(f"{name}: {line}" for name, lines in self.changed.items() for line in lines),
            *(f"{name}: new" for name in self.added),
            *(f"{name}: no longer part of the run; its folder stays" for name in self.removed),
            *(f"{name}: done anew" for name in self.anew),
        ]

    @property
    def touched(self) -> set[str]:
        """The steps whose folder is changed: no job of theirs may live."""
        return {*self.changed, *self.removed, *self.anew}


def compare(
    before: Sequence[Step],
    after: Sequence[dict[str, Any]],
    results: Results,
    tried: Mapping[str, bool],
    redo: Sequence[str],
) -> Mending:
    """What differs between two versions of a run, both in dependency order.

    `results` has what has succeeded, `tried` what was ever submitted. UserError for a step to redo
    that there is not.
    """
    old = {step["name"]: step for step in before}
    names = [step["name"] for step in after]
    if unknown := [f"--redo {name}: {nearest(name, names)}" for name in redo if name not in names]:
        raise UserError("\n".join(unknown))
    needs = {step["name"]: step["needs"] for step in after}
    known = [step for step in after if step["name"] in old]
    changes = {step["name"]: list(differences(old[step["name"]], step)) for step in known}
    stale = {
        step["name"]
        for step in known
        if changes[step["name"]]
        and (result := results.get(step["name"])) is not None
        and _is_stale(old[step["name"]], step, result, results)
    }
    return Mending(
        steps=list(after),
        changed={name: lines for name, lines in changes.items() if lines},
        added=[name for name in names if name not in old],
        removed=[name for name in old if name not in names],
        anew=[name for name in with_all_behind({*redo, *stale}, needs) if tried.get(name)],
    )


def _is_stale(old: Step, new: Step, result: Mapping[str, Any], results: Results) -> bool:
    """Whether a result is no longer what the step would find; resources do not change it."""
    other = any(old[part] != new[part] for part in ("kind", "settings"))
    return other or bool(gate.explain_miss(_filled(new["gate"], results), result))


def _filled(conditions: Mapping[str, str], results: Results) -> dict[str, str]:
    """A gate with what other steps have come to; conditions on what is not known yet are left out:
    the steps that they are about are done anew, and this one behind them.
    """
    known = {}
    for name, text in conditions.items():
        with suppress(KeyError, TypeError):
            known[name] = str(fill_references(text, lambda place: _value(results, place)))
    return known


def _value(results: Results, reference: str) -> Any:
    """What a reference means (KeyError or TypeError where it means nothing)."""
    name, *fields = reference.split(".")
    value: Any = results[name]
    for field in fields:
        value = value[field]
    return value


def differences(old: Step, new: Step) -> Iterator[str]:
    """One line for each value that differs."""
    before, after = dict(walk(old)), dict(walk(new))
    for place in [*before, *(place for place in after if place not in before)]:
        if before.get(place) != after.get(place):
            dotted = ".".join(str(part) for part in place)
            yield f"{dotted}: {_show_value(before, place)} -> {_show_value(after, place)}"


def _show_value(values: Mapping[Any, Any], place: Any) -> str:
    return str(values[place]) if place in values else "nothing"


def mending(run: Run, pipeline: Pipeline, redo: Sequence[str]) -> Mending:
    """What a run needs to become a pipeline, with some steps done anew."""
    folders = {step["name"]: run.step(step["name"]) for step in run.steps()}
    return compare(
        [_with_new_names(step) for step in run.steps()],
        [step.model_dump(mode="json") for step in pipeline.steps],
        {name: folder.result() for name, folder in folders.items()},
        {name: folder.latest() is not None for name, folder in folders.items()},
        redo,
    )


def _with_new_names(step: dict[str, Any]) -> dict[str, Any]:
    """A step as it was submitted, in the names of today: a new name alone is no difference."""
    if step["kind"] not in kinds.NAMES:
        return step
    return {**step, "settings": with_new_names(kinds.load(step["kind"]).Settings, step["settings"])}


def mend(run: Run, backend: Backend, plan: Mending, **facts: Any) -> None:
    """Carry a mending out: take what waits out of the queue, set aside, write the new steps.

    `facts` are further entries of run.json. The caller holds the run's lock and submits then.
    UserError where a step to be changed is running, ClusterError where a job of it may still live.
    Cut short, the same command again does the rest.
    """
    seen = look_closely(run, backend)
    living = alive(seen, [name for name in run.names() if name in plan.touched])
    at_work = [each for each in living if not _is_leaving(seen.records[each.step])]
    _refuse_running(run, seen, at_work)
    trouble = end(run, backend, at_work)
    if left := settle(run, backend, living):
        names = ", ".join(sorted({each.step for each in left}))
        raise ClusterError(
            f"{names}: {trouble or 'still ending'}; nothing was changed: try again in a moment"
        )
    for name in reversed(plan.anew):  # the last first: cut short, nothing stale looks finished
        run.step(name).set_aside()
    for step in plan.steps:
        if step["name"] in plan.changed or step["name"] in plan.added:
            run.step(step["name"]).write_job(step)
    run.write_info({**run.info(), **facts, "steps": plan.steps})


def _is_leaving(record: Record) -> bool:
    """Whether a step has recorded its end: its job is in the queue for a second more."""
    return record.result is not None or record.has_own_failure


def _refuse_running(run: Run, seen: View, living: Sequence[Living]) -> None:
    """UserError for steps at work: what they have done would be mixed with what they will do."""
    running = {
        each.step
        for each in living
        if seen.queue[each.submission.token].state is QueueState.RUNNING
        and not each.submission.cancel_requested
    }
    if running:
        ends = "; ".join(f"{NAME} cancel {run.name}/{name}" for name in sorted(running))
        raise UserError(f"{', '.join(sorted(running))}: running; first end what changes: {ends}")
