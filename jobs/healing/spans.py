"""From what the files say of a step to what each second of its allocations was spent on.

All decided in pure functions over plain data: `starts` finds the starts of a step in its events and
metrics, `spans` cuts one allocation into spans without gap or overlap, `recoveries` says how long
each interruption took to make good.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from lact_asr.training.clock import PHASES, SAVING, STALLED, USEFUL, VALIDATING, metric
from lact_asr.utils.files import number

QUEUED = "queued"  # ready to run, and not running
STARTING = "starting"  # Python, data, model, until the first step begins
REPLAYED = "replayed"  # steps that an earlier start had computed already
IDLE = "idle"  # held, and nothing came of it: killed since the last record, hung, leaving
UNKNOWN = "unknown"  # nothing on record says what it was spent on
SPENT = (STARTING, USEFUL, REPLAYED, STALLED, VALIDATING, SAVING, IDLE, UNKNOWN)
_LATE = 1.0  # s that a line of metrics may be written after its seconds were counted
STARTS, ENDS = ("started", "resumed"), ("interrupted", "finished", "failed")


class Allocation(NamedTuple):
    """A stay of a job on its nodes. A job that was requeued has several."""

    job: str
    begin: float  # seconds since 1970
    end: float | None = None  # None: it still holds them
    state: str = ""  # Slurm's word; empty where nobody was asked
    memory_gb: float | None = None  # most that one of its processes had

    def until(self, now: float) -> float:
        """When it ended, or the present."""
        return max(self.begin, now if self.end is None else self.end)


class Mark(NamedTuple):
    """A line of metrics with time records: what the seconds before it were spent on."""

    time: float
    step: int
    seconds: Mapping[str, float]  # by phase, since the mark before
    whole: bool = True  # False: an older version's, which tells of the steps only


class Start(NamedTuple):
    """A process of the worker, as far as it has said anything."""

    job: str
    restart: int | None  # how often Slurm had started this job before; None in older records
    time: float  # of its first word
    first: int  # the training step that it went on from
    marks: tuple[Mark, ...]
    last: float  # time of its last word
    end: str  # interrupted, finished, failed; empty for one that runs, or was killed
    facts: Mapping[str, Any]  # of that event


class Span(NamedTuple):
    """Seconds of an allocation, and what they were spent on."""

    begin: float
    end: float
    what: str


class Recovery(NamedTuple):
    """From the last new training step before interruptions to the first new one after them."""

    faults: tuple[str, ...]  # how each start in between had ended
    step: int  # the last one before
    begin: float
    end: float
    replayed: int  # steps computed again


class _Piece(NamedTuple):
    """A stretch that begins where the one before it ends."""

    until: float
    shares: Mapping[str, float]  # seconds on record, at its end
    rest: str  # what was before these


def starts(
    events: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]
) -> list[Start]:
    """The starts of a step, oldest first. A clock that was set back stands still here."""
    times = _rising(event["time"] for event in events)
    begins = [i for i, event in enumerate(events) if event["event"] in STARTS and "host" in event]
    limits = [*begins[1:], len(events)][: len(begins)]
    lines = [line for line in metrics if number(line.get("time")) is not None]
    moments = _rising(line["time"] for line in lines)
    found = []
    for begin, limit in zip(begins, limits, strict=True):
        until = times[limit] if limit < len(events) else float("inf")
        mine = [
            (moment, line)
            for moment, line in zip(moments, lines, strict=True)
            if times[begin] <= moment < until
        ]
        found.append(_start(events[begin:limit], times[begin:limit], mine))
    return found


def _rising(times: Iterable[Any]) -> list[float]:
    return [*accumulate(map(float, times), max)]


def _start(
    events: Sequence[Mapping[str, Any]],
    times: Sequence[float],
    lines: Sequence[tuple[float, Mapping[str, Any]]],
) -> Start:
    """One start, from its events, of which the first is its first word, and its metrics."""
    ends = [i for i, event in enumerate(events) if event["event"] in ENDS]
    last = ends[-1] if ends else len(events) - 1
    steps = [number(event.get("step")) for event in events[1:] if event["event"] == "resumed"]
    first = int(next((step for step in steps if step is not None), 0))
    words = [times[last], *(time for time, _ in lines if not ends)]
    restart = number(events[0].get("restart"))
    return Start(
        job=str(events[0].get("job", "")),
        restart=None if restart is None else int(restart),
        time=times[0],
        first=first,
        marks=tuple(_marks(first, lines)),
        last=max(words),
        end=str(events[last]["event"]) if ends else "",
        facts=events[last] if ends else {},
    )


def _marks(first: int, lines: Iterable[tuple[float, Mapping[str, Any]]]) -> Iterator[Mark]:
    """The lines that say where time went; an older version's say how long their steps took."""
    before = first
    for time, line in lines:
        step, each = number(line.get("step")), number(line.get("seconds_per_step"))
        spent = {phase: number(line.get(metric(phase))) for phase in PHASES}
        known = {phase: max(0.0, seconds) for phase, seconds in spent.items() if seconds}
        if step is None:
            continue
        if any(seconds is not None for seconds in spent.values()):
            yield Mark(time, int(step), known)
        elif each is not None:
            yield Mark(time, int(step), {USEFUL: max(0.0, each * (step - before))}, whole=False)
        before = int(step)


def frontiers(history: Sequence[Start]) -> list[int]:
    """For each start, the furthest training step that the starts before it had reached."""
    reached = [max([0, *(mark.step for mark in start.marks)]) for start in history]
    return [0, *accumulate(reached, max)][: len(history)]


def spans(
    allocation: Allocation, held: Sequence[tuple[Start, int]], timed: bool, now: float
) -> list[Span]:
    """One allocation cut into spans, given its starts, each with the frontier that it met.

    `timed`: the step is a training that says where its time goes, so that a start without a word
    of that never came to its first step.
    """
    pieces: list[_Piece] = []
    before = STARTING
    for start, frontier in held:
        pieces += [_Piece(start.time, {}, before), *_pieces_of(start, frontier, timed)]
        before = STARTING if start.end else IDLE
    end = allocation.until(now)
    pieces.append(_Piece(end, {}, _after(allocation, [start for start, _ in held], timed)))
    return [*_cut(allocation.begin, end, pieces)]


def _after(allocation: Allocation, held: Sequence[Start], timed: bool) -> str:
    """What an allocation was spent on after the last word of its last start."""
    living = allocation.end is None
    if not held:
        return STARTING if living else UNKNOWN
    if not living or held[-1].end:
        return IDLE
    return STARTING if timed and not held[-1].marks else UNKNOWN


def _pieces_of(start: Start, frontier: int, timed: bool) -> Iterator[_Piece]:
    before, gap = start.first, STARTING
    for mark in start.marks:
        share = _share_replayed(before, mark.step, frontier)
        useful = mark.seconds.get(USEFUL, 0.0)
        shares = {**mark.seconds, USEFUL: useful * (1 - share), REPLAYED: useful * share}
        yield _Piece(mark.time, shares, gap if mark.whole or gap == STARTING else UNKNOWN)
        before, gap = mark.step, IDLE
    yield _Piece(start.last, {}, _tail(start, timed))


def _share_replayed(before: int, step: int, frontier: int) -> float:
    """The share of the steps after `before` up to `step` that had been computed already."""
    if step <= before:
        return float(step < frontier)
    return min(1.0, max(0.0, (frontier - before) / (step - before)))


def _tail(start: Start, timed: bool) -> str:
    """What a start did between its last mark and its last word."""
    if start.end == "finished":
        return USEFUL
    if not start.marks:
        kept = start.end == "interrupted" and start.facts.get("position") is not None
        return STARTING if timed else USEFUL if kept else UNKNOWN
    return SAVING if start.end == "interrupted" else IDLE


def _cut(begin: float, end: float, pieces: Iterable[_Piece]) -> Iterator[Span]:
    """Spans that follow each other from `begin` to `end`, whatever the pieces say."""
    at = begin
    for piece in pieces:
        until = min(max(piece.until, at), end)
        known = sum(piece.shares.values())
        rest = max(0.0, until - at - known)
        if known and piece.rest == IDLE and rest < _LATE:
            rest = 0.0
        scale = (until - at - rest) / known if known else 0.0
        parts = [(piece.rest, rest), *((what, scale * s) for what, s in piece.shares.items())]
        parts = [(what, seconds) for what, seconds in parts if seconds > 0]
        for place, (what, seconds) in enumerate(parts, start=1):
            stop = until if place == len(parts) else min(at + seconds, until)
            if stop > at:  # 5e-324 s are not
                yield Span(at, stop, what)
            at = stop


def totals(found: Iterable[Span]) -> dict[str, float]:
    """Seconds by what they were spent on."""
    sums = dict.fromkeys(SPENT, 0.0)
    for span in found:
        sums[span.what] += span.end - span.begin
    return sums


def recoveries(history: Sequence[Start]) -> list[Recovery]:
    """What each interruption of a training cost, where a new step has come since."""
    found: list[Recovery] = []
    faults: list[str] = []
    reached, when, replayed = 0, 0.0, 0
    for start in history:
        replayed += steps_replayed(start, reached)
        before = start.first
        for mark in start.marks:
            if mark.step > reached:
                if faults:
                    again = _moment(mark, before, reached + 1)
                    found.append(Recovery(tuple(faults), reached, when, again, replayed))
                    faults, replayed = [], 0
                reached, when = mark.step, mark.time
            before = mark.step
        faults += [ending(start)] if reached else []
    return found


def steps_replayed(start: Start, frontier: int) -> int:
    """Training steps of a start that had been computed before it."""
    furthest = max([start.first, *(mark.step for mark in start.marks)])
    return max(0, min(frontier, furthest) - start.first)


def _moment(mark: Mark, before: int, step: int) -> float:
    """When one of the steps of a mark was done: they are taken as equally long."""
    return mark.time - sum(mark.seconds.values()) * (mark.step - step) / (mark.step - before)


def ending(start: Start) -> str:
    """How a start that another one followed had ended, in a word or two."""
    if start.end == "interrupted":
        return f"told to stop by {start.facts.get('signal')}"
    if start.end == "failed":
        return str(start.facts.get("cause") or start.facts.get("failure_class") or "failed")
    return start.end or "killed"
