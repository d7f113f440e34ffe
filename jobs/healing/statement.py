"""A ledger for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jobs.healing.spans import QUEUED, SPENT, UNKNOWN
from jobs.printing import duration, one_line

_WIDEST = 400  # characters of a line about one step


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
        faults = one_line(", then ".join(each["faults"]), _WIDEST)
        away = f", {duration(each['away'])} of it without nodes" if each["away"] > 0.1 else ""
        yield (
            f"{step['step']}: {faults} after step {each['step']}: {duration(each['seconds'])} "
            f"until the next new step{away}; steps computed again: {each['replayed']}"
        )
    yield from (f"{step['step']}: {one_line(note, _WIDEST)}" for note in step["notes"])


def _next_time(made: Mapping[str, Any]) -> Iterator[str]:
    """The lines to write in the pipeline's file and the cluster's."""
    advised = [step for step in made["steps"] if step["advice"]]
    if advised:
        yield "next time, in the pipeline file (how much was used, of what was asked for):"
    for step in advised:
        yield f"  {step['step']}:"
        yield from _advised(step["advice"])
    if warned := made["cluster_advice"]:
        yield f"next time, in the cluster's file (it was {warned['asked']}):"
        yield f"  warning_seconds: {warned['write']}  # {warned['why']}"


def _advised(advice: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """One line of YAML for each key of a step, with what it was reckoned from."""
    for key in dict.fromkeys(each["setting"].partition(".")[0] for each in advice):
        mine = [each for each in advice if each["setting"].startswith(f"{key}.")]
        written = ", ".join(_nested(each["setting"].split(".")[1:], each["write"]) for each in mine)
        reasons = ", ".join(each["why"] or f"{each['used']} of {each['asked']}" for each in mine)
        yield f"    {key}: {{{written}}}  # {one_line(reasons, _WIDEST)}"


def _nested(places: Sequence[str], value: str) -> str:
    """`training: {checkpoint_every: 120}`"""
    first, *rest = places
    return f"{first}: {{{_nested(rest, value)}}}" if rest else f"{first}: {value}"
