"""Where every second of a run went, from its files alone; what to ask for next time.

The times of jobs come from one question to Slurm's accounts where there are some; else from what
the workers said, and from when their logs were written last. `make` reckons, `lines` are what a
person reads of it.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from jobs.healing import advice
from jobs.healing.advice import ONE_DAY, Advice
from jobs.healing.spans import (
    QUEUED,
    SPENT,
    STARTING,
    UNKNOWN,
    Allocation,
    Mark,
    Start,
    frontiers,
    recoveries,
    spans,
    starts,
    steps_replayed,
    totals,
)
from jobs.pipeline import format_minutes
from jobs.printing import duration, one_line
from jobs.store import Run, StepDir, Submission
from lact_asr.training.clock import SAVING, USEFUL, VALIDATING
from lact_asr.utils.errors import DataError
from lact_asr.utils.files import number

_BACK = ("REQUEUED", "PREEMPTED", "NODE_FAIL")  # ends after which Slurm puts a job into the queue
_WARNED = ("longest_step", "longest_validation", "longest_save")
_WARNING = "SIGUSR2"  # sent some time before the limit
_WIDEST = 400  # characters of a line about one step
_EARLY = 2.0  # s that a worker's clock may be behind Slurm's, whose times are whole seconds


class Accounts(NamedTuple):
    """What was asked of the cluster about all jobs of a run."""

    allocations: Sequence[Allocation] = ()
    living: AbstractSet[str] | None = None  # jobs that wait or run, where that is known otherwise
    trouble: str = ""  # why the cluster's accounts are not in it


class _Stay(NamedTuple):
    """A stay on nodes with its starts, each with the frontier that it met."""

    allocation: Allocation
    held: list[tuple[Start, int]]


class _Facts(NamedTuple):
    """What the files of one step say."""

    name: str
    kind: str
    needs: tuple[str, ...]
    tries: list[Submission]
    histories: list[list[Start]]  # starts; each time the step began anew after `resume --redo`
    result: bool
    job: dict[str, Any]  # job.json
    events: list[dict[str, Any]]
    flaws: list[str]

    @property
    def newest(self) -> str:
        """The job of the newest submission."""
        return self.tries[-1].job if self.tries else ""

    @property
    def every(self) -> list[Start]:
        """Every start, oldest first."""
        return [start for history in self.histories for start in history]


def make(run: Run, accounts: Accounts, now: float) -> dict[str, Any]:
    """The ledger of a run as data: what `ledger --json` prints."""
    info, ends = run.info(), dict[str, float]()  # when steps that have succeeded left their nodes
    steps = []
    for step in run.steps():
        facts = _read(run, step)
        stays = _stays(run.step(facts.name), facts, accounts)
        steps.append(_of_step(facts, stays, _ready(facts, ends), accounts.living, now))
        if facts.result and stays:
            ends[facts.name] = max(now if stay.end is None else stay.end for stay, _ in stays)
    on_slurm = info["cluster"]["backend"] == "slurm"
    return {
        "run": run.name,
        "path": str(run.path),
        "cluster": info["cluster"]["name"],
        "steps": steps,
        "total": _sum(steps),
        "cluster_advice": _cluster_advice(steps, info["cluster"]) if on_slurm else None,
        "slurm_calls": _calls(run) if on_slurm else None,
        "notes": [accounts.trouble] if accounts.trouble else [],
    }


def _read(run: Run, step: Mapping[str, Any]) -> _Facts:
    """The files of one step. What cannot be read is missing, and said."""
    folder = run.step(step["name"])
    tries, flaws = folder.submissions(), []
    before = sorted(folder.path.glob("earlier.*"), key=lambda path: int(path.suffix[1:]))
    folders = [*map(StepDir, before), folder]
    events = [each.events() for each in folders]
    histories = [starts(lines, each.metrics()) for each, lines in zip(folders, events, strict=True)]
    try:
        job = folder.job()
    except (OSError, ValueError, DataError) as error:
        job, flaws = {}, [f"{folder.path / 'job.json'} cannot be read: {error}"]
    result = folder.result() is not None
    flaws += [flaw for each in folders for flaw in each.flaws.values()]
    needs = tuple(step["needs"])
    happened = [event for lines in events for event in lines]
    return _Facts(step["name"], step["kind"], needs, tries, histories, result, job, happened, flaws)


def _ready(facts: _Facts, ends: Mapping[str, float]) -> float:
    """When the last of the steps that it needs had ended; inf before that."""
    return max((ends.get(need, math.inf) for need in facts.needs), default=0.0)


def _stays(folder: StepDir, facts: _Facts, accounts: Accounts) -> list[_Stay]:
    """The step's stays on nodes, oldest first."""
    jobs = {each.job for each in facts.tries}
    known = [each for each in accounts.allocations if each.job in jobs]
    held: dict[int, list[tuple[Start, int]]] = {place: [] for place in range(len(known))}
    homeless: list[tuple[Start, int]] = []
    for history in facts.histories:
        for start, frontier in zip(history, frontiers(history), strict=True):
            held.get(_home(start, known), homeless).append((start, frontier))
    found = [_Stay(_widened(known[place], mine), mine) for place, mine in held.items()]
    alive = facts.newest in (accounts.living or ())
    groups = [*_groups(homeless)]
    for group in groups:
        still = alive and group is groups[-1] and group[-1][0].job == facts.newest
        found.append(_Stay(_guessed(folder, group, still), group))
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
    silent = [last.last]
    for path in [] if last.end else folder.logs_of(last.job):
        with contextlib.suppress(OSError):
            silent.append(path.stat().st_mtime)
    return Allocation(first.job, first.time, max(silent))


def _of_step(
    facts: _Facts,
    stays: Sequence[_Stay],
    ready: float,
    living: AbstractSet[str] | None,
    now: float,
) -> dict[str, Any]:
    """What a step's seconds were spent on, and what to ask for next time."""
    timed = any(mark.whole for start in facts.every for mark in start.marks)
    cut = [span for stay, held in stays for span in spans(stay, held, timed, now)]
    seconds = totals(cut)
    allocated = sum(seconds.values())
    waited = waits(
        facts.tries, [stay for stay, _ in stays], ready, now, _over(facts, stays, living)
    )
    gpus = _gpus(facts.job)
    measured = _measured(facts, seconds)
    made_good = [each for history in facts.histories for each in recoveries(history)]
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
        "recoveries": [each._asdict() for each in made_good],
        "measured": measured,
        "advice": [each._asdict() for each in _advice(facts, stays, measured)],
        "notes": [*_notes(seconds, facts, stays, timed), *facts.flaws],
    }


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
    for each in tries:
        since = max(each.time, ready)
        for stay in [stay for stay in stays if each.job and stay.job == each.job]:
            waited += max(0.0, stay.begin - since)
            since = math.inf if stay.end is None else stay.end
        if each.cancel_requested:
            waited += max(0.0, each.cancel_requested - since)
        elif each is tries[-1] and not over and not each.refused:
            waited += max(0.0, now - since)
    return waited


def _over(facts: _Facts, stays: Sequence[_Stay], living: AbstractSet[str] | None) -> bool:
    """Whether the newest job of a step has left the queue, as far as that is known."""
    if facts.result:
        return True
    if living is not None:
        return facts.newest not in living
    mine = [stay for stay in stays if stay.allocation.job == facts.newest]
    if not mine:
        return False
    last, held = mine[-1]
    asked = bool(held) and held[-1][0].facts.get("signal") == _WARNING
    return last.state not in _BACK if last.state else not asked


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _gpus(job: Mapping[str, Any]) -> int:
    """GPUs of a step on all its nodes; 0 where its file does not say."""
    gpus, nodes = (_resource(job, name) for name in ("gpus", "nodes"))
    return int((gpus or 0) * (nodes or 1))


def _resource(job: Mapping[str, Any], name: str) -> float | None:
    resources = job.get("resources")
    return number(resources.get(name)) if isinstance(resources, dict) else None


def _replayed(histories: Iterable[list[Start]]) -> int:
    return sum(
        steps_replayed(start, frontier)
        for history in histories
        for start, frontier in zip(history, frontiers(history), strict=True)
    )


def _measured(facts: _Facts, seconds: Mapping[str, float]) -> dict[str, float | None]:
    """What a training was seen to take, in seconds; None for what was not seen."""
    lines = [line for start in facts.every for line in _lines(start)]
    steps = sum(count for count, _ in lines)
    computing = [(count, mark.seconds.get(USEFUL, 0.0)) for count, mark in lines if count > 0]
    saves = [event for event in facts.events if event["event"] == "checkpoint"]
    restarts = max(1, len(facts.every))
    return {
        "seconds_per_step": _divided(sum(each for _, each in computing), steps),
        "longest_step": max((each / count for count, each in computing), default=None),
        "longest_validation": max((m.seconds.get(VALIDATING, 0.0) for _, m in lines), default=None),
        "standstill": _divided(sum(m.seconds.get(SAVING, 0.0) for _, m in lines), len(saves)),
        "longest_save": max(filter(None, map(_whole_save, saves)), default=None),
        "restart": seconds[STARTING] / restarts if lines else None,
        "between_faults": _divided(sum(seconds.values()), _faults(facts)),
    }


def _lines(start: Start) -> Iterator[tuple[int, Mark]]:
    """How many steps each mark tells of."""
    before = start.first
    for mark in start.marks:
        if mark.whole:
            yield max(0, mark.step - before), mark
        before = mark.step


def _whole_save(event: Mapping[str, Any]) -> float:
    """Seconds until a checkpoint was on disk, those of the training beside it included."""
    taken = [number(value) for name, value in event.items() if name.endswith("_seconds")]
    return sum(filter(None, taken))


def _faults(facts: _Facts) -> int:
    """Starts that lost what they had not saved."""
    ended = [start for history in facts.histories for start in history[:-1]]
    return sum(start.end in ("", "failed") for start in ended)


def _divided(total: float, count: float) -> float | None:
    return total / count if count else None


def _advice(
    facts: _Facts, stays: Sequence[_Stay], measured: Mapping[str, float | None]
) -> Iterator[Advice]:
    """Asked against used, with what to write next time."""
    resources = facts.job.get("resources")
    if not isinstance(resources, dict) or not facts.every:
        return
    yield from _time(str(resources.get("time")), stays, facts.result)
    yield from _memory(resources, facts.every, stays)
    yield from _cores(resources, facts.every)
    yield from _checkpoints(facts.job, measured)


def _time(asked: str, stays: Sequence[_Stay], done: bool) -> Iterator[Advice]:
    lengths = [each.end - each.begin for each, _ in stays if each.end is not None]
    if not lengths:
        return
    write = format_minutes(advice.time_limit(sum(lengths))) if done else ""
    again = f", over {len(lengths)} stays" if len(lengths) > 1 else ""
    yield Advice("resources.time", asked, f"{duration(sum(lengths))}{again}", write)


def _memory(
    resources: Mapping[str, Any], every: Sequence[Start], stays: Sequence[_Stay]
) -> Iterator[Advice]:
    """Memory of a node: the largest process, as many times as there are."""
    own = [number(start.facts.get("peak_memory_gb")) for start in every]
    peaks = [peak for peak in [*own, *(stay.memory_gb for stay, _ in stays)] if peak]
    if not peaks:
        return
    used = max(peaks) * max(1, int(number(resources.get("gpus")) or 0))
    asked = number(resources.get("memory_gb"))
    write = advice.memory(used)
    yield Advice("resources.memory_gb", f"{asked:g}", f"{used:.2g}", f"{write:g}")


def _cores(resources: Mapping[str, Any], every: Sequence[Start]) -> Iterator[Advice]:
    """Cores of a process, on average from its first word to its last."""
    told = [(number(start.facts.get("cpu_seconds")), start.last - start.time) for start in every]
    known = [(spent, seconds) for spent, seconds in told if spent and seconds > 0]
    if not known:
        return
    spent, seconds = (sum(column) for column in zip(*known, strict=True))
    write = advice.cores(spent, seconds)
    asked = number(resources.get("cpus"))
    yield Advice("resources.cpus", f"{asked:g}", f"{spent / seconds:.2g}", f"{write}")


def _checkpoints(job: Mapping[str, Any], measured: Mapping[str, float | None]) -> Iterator[Advice]:
    """How often to save, where it was seen how long that takes."""
    save, each, restart = (measured[name] for name in ("standstill", "seconds_per_step", "restart"))
    if not save or not each or restart is None:
        return
    between = measured["between_faults"]
    every = advice.whole_steps(advice.interval(save, restart, between or ONE_DAY), each)
    settings = job.get("settings")
    training = settings.get("training") if isinstance(settings, dict) else None
    asked = training.get("checkpoint_every") if isinstance(training, dict) else ""
    fault = f"a fault every {duration(between)}" if between else "no fault met, one a day taken"
    yield Advice(
        "settings.training.checkpoint_every",
        str(asked),
        f"{save:.2g} s each",
        str(every),
        f"{fault}, {restart:.3g} s to start again, {each:.3g} s a step (Young and Daly)",
    )


def _cluster_advice(
    steps: Sequence[Mapping[str, Any]], cluster: Mapping[str, Any]
) -> dict[str, str] | None:
    """How long before the limit steps have to be told, for all of them."""
    needed = [
        advice.warning(*parts)
        for measured in [step["measured"] for step in steps]
        if None not in (parts := [measured[name] for name in _WARNED])
    ]
    if not needed:
        return None
    asked, write = str(cluster.get("warning_seconds", "")), str(max(needed))
    why = "the longest step, validation and checkpoint, one after the other"
    return Advice("warning_seconds", asked, "", write, why)._asdict()


def _notes(
    seconds: Mapping[str, float], facts: _Facts, stays: Sequence[_Stay], timed: bool
) -> Iterator[str]:
    """What is not known, and why."""
    old = any(not mark.whole for start in facts.every for mark in start.marks)
    if old:
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
    requeued = [event for event in events if event.get("signal") == _WARNING]
    refused = [event for event in events if event["event"] == "not_requeued"]
    return {
        "sbatch": sum(bool(each.job or each.refused) for each in tries),
        "scontrol requeue": len(requeued) + len(refused),
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


def lines(made: Mapping[str, Any]) -> Iterator[str]:
    """A ledger for people."""
    yield f"{made['run']} on {made['cluster']}"
    yield from _table(made)
    hours = {what: value for what, value in made["total"]["gpu_hours"].items() if value}
    if hours:
        parts = ", ".join(f"{value:.2f} {what}" for what, value in hours.items())
        yield f"GPU-hours: {sum(hours.values()):.2f} allocated: {parts}"
    for step in made["steps"]:
        yield from _story(step)
    yield from _next_time(made)
    if calls := made["slurm_calls"]:
        named = ", ".join(f"{count} {name}" for name, count in calls.items())
        yield f"calls of Slurm on record: {named} (squeue and sacct leave no trace)"
    yield from made["notes"]


def _table(made: Mapping[str, Any]) -> Iterator[str]:
    total = {**made["total"], "step": "in all"}
    shown = [what for what in SPENT if total["seconds"][what] or what != UNKNOWN]
    rows = [["step", QUEUED, "allocated", *shown, "ETTR"]]
    for row in [*made["steps"], total]:
        spent = [row[QUEUED], row["allocated"], *(row["seconds"][what] for what in shown)]
        rows.append([row["step"], *(duration(each) if each else "-" for each in spent)])
        rows[-1].append("" if row["ettr"] is None else f"{100 * row['ettr']:.1f} %")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *right]).rstrip()


def _story(step: Mapping[str, Any]) -> Iterator[str]:
    """What went wrong with a step and what it cost."""
    for each in step["recoveries"]:
        faults = ", then ".join(each["faults"])
        yield (
            f"{step['step']}: {faults} after step {each['step']}; {duration(each['seconds'])} "
            f"until the next new step, {each['replayed']} steps computed again"
        )
    yield from (f"{step['step']}: {one_line(note, _WIDEST)}" for note in step["notes"])


def _next_time(made: Mapping[str, Any]) -> Iterator[str]:
    """The lines to write in the pipeline's file and the cluster's."""
    advised = [step for step in made["steps"] if any(each["write"] for each in step["advice"])]
    if advised:
        yield "next time, in the pipeline file:"
    for step in advised:
        yield f"  {step['step']}:"
        for each in step["advice"]:
            yield from _advised(each)
    if warned := made["cluster_advice"]:
        yield "next time, in the cluster's file:"
        yield f"  warning_seconds: {warned['write']}  # was {warned['asked']}; {warned['why']}"


def _advised(each: Mapping[str, str]) -> Iterator[str]:
    *outer, name = each["setting"].split(".")
    inside = f"{name}: {each['write']}"
    for place in reversed(outer[1:]):
        inside = f"{place}: {{{inside}}}"
    why = f"; {each['why']}" if each["why"] else ""
    if each["write"]:
        yield f"    {outer[0]}: {{{inside}}}  # asked {each['asked']}, used {each['used']}{why}"
