"""Where every second of a run went, from its files and one question to Slurm's accounts."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from jobs.healing.history import Facts, read
from jobs.healing.next_time import advise, advise_cluster, measure
from jobs.healing.spans import (
    QUEUED,
    SPENT,
    UNKNOWN,
    Recovery,
    Start,
    frontiers,
    recoveries,
    spans,
    steps_replayed,
    totals,
)
from jobs.healing.stays import WARNING, Accounts, Stay, find, has_left, waits
from jobs.store import Run
from lact_asr.training.clock import USEFUL
from lact_asr.utils.files import number


def make(run: Run, accounts: Accounts, now: float) -> dict[str, Any]:
    """The ledger of a run as data: what `ledger --json` prints."""
    info, ends = run.info(), dict[str, float]()  # when steps that have succeeded left their nodes
    steps = []
    for step in run.steps():
        facts = read(run, step)
        stays = find(run.step(facts.name), facts, accounts)
        steps.append(_of_step(facts, stays, _ready(facts, ends), accounts.living, now))
        if facts.result and stays:
            ends[facts.name] = max(stay.allocation.until(now) for stay in stays)
    on_slurm = info["cluster"]["backend"] == "slurm"
    return {
        "run": run.name,
        "path": str(run.path),
        "cluster": info["cluster"]["name"],
        "steps": steps,
        "total": _sum(steps),
        "cluster_advice": advise_cluster(steps, info["cluster"]) if on_slurm else None,
        "slurm_calls": _calls(run) if on_slurm else None,
        "notes": [accounts.trouble] if accounts.trouble else [],
    }


def _ready(facts: Facts, ends: Mapping[str, float]) -> float:
    """When the last of the steps that it needs had ended; inf before that."""
    return max((ends.get(need, math.inf) for need in facts.needs), default=0.0)


def _of_step(
    facts: Facts,
    stays: Sequence[Stay],
    ready: float,
    living: AbstractSet[str] | None,
    now: float,
) -> dict[str, Any]:
    """What a step's seconds were spent on, and what to ask for next time."""
    timed = any(mark.whole for start in facts.every for mark in start.marks)
    seconds = totals(span for stay in stays for span in spans(*stay, timed, now))
    allocated, gpus = sum(seconds.values()), _gpus(facts.resources)
    over = has_left(facts, stays, living)
    waited = waits(facts.tries, [stay.allocation for stay in stays], ready, now, over)
    measured = measure(facts, stays, seconds)
    return {
        "step": facts.name,
        "kind": facts.kind,
        "starts": len(facts.every),
        "gpus": gpus,
        QUEUED: round(waited, 3),
        "allocated": round(allocated, 3),
        "seconds": {what: round(value, 3) for what, value in seconds.items()},
        "gpu_hours": {what: round(value * gpus / 3600, 6) for what, value in seconds.items()},
        "ettr": _share(seconds[USEFUL], allocated),
        "steps_replayed": _replayed(facts.histories),
        "recoveries": [
            _recovery(each, stays, now) for starts in facts.histories for each in recoveries(starts)
        ],
        "measured": measured,
        "advice": [each._asdict() for each in advise(facts, stays, measured)],
        "notes": [*_notes(seconds, facts, stays, timed), *facts.flaws],
    }


def _recovery(each: Recovery, stays: Sequence[Stay], now: float) -> dict[str, Any]:
    """What an interruption cost; `away`: seconds of it without nodes."""
    held = sum(
        max(0.0, min(each.end, stay.allocation.until(now)) - max(each.begin, stay.allocation.begin))
        for stay in stays
    )
    seconds = each.end - each.begin
    return {
        "faults": list(each.faults),
        "step": each.step,
        "seconds": round(seconds, 3),
        "away": round(seconds - held, 3),
        "replayed": each.replayed,
    }


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _gpus(resources: Mapping[str, Any]) -> int:
    """GPUs of a step on all its nodes; 0 where its file does not say."""
    gpus, nodes = number(resources.get("gpus")), number(resources.get("nodes"))
    return int((gpus or 0) * (nodes or 1))


def _replayed(histories: Iterable[list[Start]]) -> int:
    """Training steps computed more than once."""
    return sum(
        steps_replayed(start, frontier)
        for history in histories
        for start, frontier in zip(history, frontiers(history), strict=True)
    )


def _notes(
    seconds: Mapping[str, float], facts: Facts, stays: Sequence[Stay], timed: bool
) -> Iterator[str]:
    """What is not known, and why."""
    if any(not mark.whole for start in facts.every for mark in start.marks):
        yield (
            "an older version trained here, which kept no time records: useful is what it said of "
            "its steps, waiting for data and saving among it"
        )
    elif seconds[UNKNOWN] and not timed and facts.every:
        yield "it keeps no time records: what a start that did not succeed was good for is unknown"
    if any(not held for _, held in stays):
        yield "nothing on record tells of a stay on its nodes: no worker came so far"


def _calls(run: Run) -> dict[str, int]:
    """Calls of Slurm that the files tell of; who only looks leaves no trace."""
    tries = [each for name in run.names() for each in run.step(name).submissions()]
    events = [event for name in run.names() for event in run.step(name).events()]
    requeued = [event for event in events if event.get("signal") == WARNING]
    refused = [event for event in events if event["event"] == "not_requeued"]
    handed = [event for event in events if event["event"] == "handed_over"]
    return {
        "sbatch": sum(bool(each.job or each.refused) for each in tries),
        "scontrol requeue": len(requeued) + len(refused) - len(handed),
        "scancel": sum(bool(each.cancel_requested) for each in tries),
    }


def _sum(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same of all steps together."""
    seconds, hours = (
        {what: round(sum(step[name][what] for step in steps), 6) for what in SPENT}
        for name in ("seconds", "gpu_hours")
    )
    allocated = sum(step["allocated"] for step in steps)
    return {
        QUEUED: round(sum(step[QUEUED] for step in steps), 3),
        "allocated": round(allocated, 3),
        "seconds": seconds,
        "gpu_hours": hours,
        "ettr": _share(seconds[USEFUL], allocated),
        "steps_replayed": sum(step["steps_replayed"] for step in steps),
    }
