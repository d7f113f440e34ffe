"""What to write next time, for one step and for the cluster: asked against used."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.healing import advice
from jobs.healing.advice import ONE_DAY, Advice
from jobs.healing.history import Facts
from jobs.healing.spans import STARTING, Mark, Start
from jobs.healing.stays import Stay
from jobs.pipeline import format_minutes
from jobs.printing import duration
from lact_asr.training.clock import SAVING, USEFUL, VALIDATING
from lact_asr.utils.files import number

_WARNED = ("longest_step", "longest_validation", "longest_save")


def measure(
    facts: Facts, stays: Sequence[Stay], seconds: Mapping[str, float]
) -> dict[str, float | None]:
    """What a training was seen to take, in seconds; None for what was not seen."""
    lines = [line for start in facts.every for line in _lines(start)]
    phases = (USEFUL, VALIDATING, SAVING)
    spent = {phase: [mark.seconds.get(phase, 0.0) for _, mark in lines] for phase in phases}
    each = [mark.seconds.get(USEFUL, 0.0) / count for count, mark in lines if count]
    saves = [event for event in facts.events if event["event"] == "checkpoint"]
    starts = sum(bool(start.marks) for start in facts.every)
    return {
        "seconds_per_step": _mean(sum(spent[USEFUL]), sum(count for count, _ in lines)),
        "longest_step": max(each, default=None),
        "longest_validation": max(spent[VALIDATING], default=None),
        "standstill": _mean(sum(spent[SAVING]), len(saves)),
        "longest_save": max(map(_whole_save, saves), default=None),
        "restart": _mean(seconds[STARTING], starts),
        "between_faults": _mean(sum(seconds.values()), _faults(stays)),
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


def _faults(stays: Sequence[Stay]) -> int:
    """Starts that lost what they had not saved; the newest one of a living job may be at work."""
    ended = [start for stay in stays for start, _ in stay.held[: -1 if stay.is_living else None]]
    return sum(start.end in ("", "failed") for start in ended)


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def advise(
    facts: Facts, stays: Sequence[Stay], measured: Mapping[str, float | None]
) -> Iterator[Advice]:
    """Asked against used, with what to write next time."""
    if facts.every:
        yield from _time(facts, stays)
        yield from _memory(facts, stays)
        yield from _cores(facts)
        yield from _checkpoints(facts, measured)


def _time(facts: Facts, stays: Sequence[Stay]) -> Iterator[Advice]:
    """The time limit, once the step has succeeded: enough for all of its stays together."""
    lengths = [end - stay.begin for stay, _ in stays if (end := stay.end) is not None]
    used = duration(sum(lengths)) + (f" in {len(lengths)} stays" if len(lengths) > 1 else "")
    if facts.result and lengths:
        write = format_minutes(advice.time_limit(sum(lengths)))
        yield Advice("resources.time", _asked(facts, "time"), used, write)


def _memory(facts: Facts, stays: Sequence[Stay]) -> Iterator[Advice]:
    """Memory of a node: that of the largest process, as many times as there are."""
    own = [number(start.facts.get("peak_memory_gb")) for start in facts.every]
    peaks = [peak for peak in [*own, *(stay.memory_gb for stay, _ in stays)] if peak]
    if peaks:
        used = max(peaks) * max(1, int(number(facts.resources.get("gpus")) or 0))
        write = f"{advice.memory(used):g}"
        yield Advice("resources.memory_gb", _asked(facts, "memory_gb"), f"{used:.2g}", write)


def _cores(facts: Facts) -> Iterator[Advice]:
    """Cores of a process, on average from its first word to its last."""
    told = [(number(each.facts.get("cpu_seconds")), each.last - each.time) for each in facts.every]
    known = [(spent, seconds) for spent, seconds in told if spent and seconds >= advice.SHORT]
    if known:
        spent, seconds = (sum(column) for column in zip(*known, strict=True))
        write = str(advice.cores(spent, seconds))
        yield Advice("resources.cpus", _asked(facts, "cpus"), f"{spent / seconds:.2g}", write)


def _asked(facts: Facts, name: str) -> str:
    value = facts.resources.get(name, "?")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _checkpoints(facts: Facts, measured: Mapping[str, float | None]) -> Iterator[Advice]:
    """How often to save, where it was seen how long that takes."""
    save, each, restart = (measured[name] for name in ("standstill", "seconds_per_step", "restart"))
    if not save or not each or restart is None:
        return
    between = measured["between_faults"]
    every = advice.whole_steps(advice.interval(save, restart, between or ONE_DAY), each)
    asked = str(facts.training.get("checkpoint_every", "?"))
    fault = f"a fault every {duration(between)}" if between else "no fault met, one a day assumed"
    took = f"one takes {save:.2g} s, a start {restart:.2g} s, a step {each:.2g} s"
    why = f"was {asked}; {fault}, {took}"
    yield Advice("settings.training.checkpoint_every", asked, f"{save:.3f} s", str(every), why)


def advise_cluster(
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
