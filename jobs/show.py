"""What a user sees of a run: the status table, the same as JSON, waiting, and logs.

`status` must stay cheap (60 ms): rich is imported only where something is drawn.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.backends import Backend, JobState
from jobs.errors import UserError
from jobs.plan import ACTIVE, Observed, State
from jobs.states import ENDS, STARTS, Queue, Record, view
from jobs.store import Run, StepDir

if TYPE_CHECKING:
    from rich.text import Text

_COLOURS = {
    "state": "bold",  # the heading
    State.SUCCEEDED.value: "green",
    State.RUNNING.value: "cyan",
    State.FAILED.value: "bold red",
    State.CANCELLED.value: "yellow",
    State.LOST.value: "bold magenta",
}
_POLL = 1.0  # seconds between looks at the queue


def describe(run: Run, backend: Backend) -> dict[str, Any]:
    """The status of a run as data: what `status --json` prints."""
    seen, info = view(run, Queue(backend)), run.info()
    return {
        "run": run.name,
        "path": str(run.path),
        "pipeline": info["pipeline"],
        "cluster": info["cluster"]["name"],
        "created": info["created"],
        "steps": [
            _describe_step(
                step, seen.records[step["name"]], seen.observed[step["name"]], seen.queue
            )
            for step in info["steps"]
        ],
    }


def _describe_step(
    step: Mapping[str, Any], record: Record, seen: Observed, queue: Mapping[str, JobState]
) -> dict[str, Any]:
    latest, events = record.latest, record.events
    job = queue.get(latest.token) if latest else None
    seconds = _seconds_run(events, seen.state)
    if seconds is None and job is not None:
        seconds = job.elapsed or None
    return {
        "step": step["name"],
        "kind": step["kind"],
        "state": seen.state.value,
        "reason": seen.reason.splitlines()[0] if seen.reason else "",
        "job": latest.job or (job.job if job else "") if latest else "",
        "submissions": len(record.tries),
        "seconds": None if seconds is None else round(seconds, 1),
        "progress": record.folder.progress() if events else {},
        "result": record.result,
    }


def _seconds_run(events: list[dict[str, Any]], state: State) -> float | None:
    """Seconds the step has been running, over all its starts; None before the first."""
    total, since = 0.0, None
    for event in events:
        if event["event"] in STARTS and "host" in event:  # training reports what it resumed, too
            since = event["time"]
        elif event["event"] in ENDS and since is not None:
            total, since = total + event["time"] - since, None
    if since is not None and state is State.RUNNING:
        total += time.time() - since
    return total if events else None


def exit_code(status: Mapping[str, Any]) -> int:
    """1 where a step has failed or is lost, else 0."""
    bad = (State.FAILED.value, State.LOST.value)
    return int(any(step["state"] in bad for step in status["steps"]))


def table(status: Mapping[str, Any]) -> "Text":
    """The status in columns; 100 steps take 5 ms so, 50 ms as a Table of rich."""
    from rich.text import Text

    rows = [("step", "kind", "state", "time", "job", "what"), *map(_row, status["steps"])]
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    drawn = Text.assemble((f"{status['run']} on {status['cluster']}", "italic"))
    for row in rows:
        step, kind, state, *rest = (
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        )
        drawn.append(f"\n{step}{kind}").append(state, _COLOURS.get(row[2]))
        drawn.append("".join(rest).rstrip())
    return drawn


def _row(step: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = "" if step["seconds"] is None else duration(step["seconds"])
    job = step["job"].split(".")[0]
    return step["step"], step["kind"], step["state"], seconds, job, summary(step)


def summary(step: Mapping[str, Any]) -> str:
    """The one line that matters of a step: why it failed, what it found, how far it is."""
    if step["state"] == State.SUCCEEDED.value:
        return _headline(step["result"])
    if step["reason"]:
        return str(step["reason"])
    return _progress(step["progress"]) if step["state"] == State.RUNNING.value else ""


def _headline(result: Mapping[str, Any]) -> str:
    """The results people look for: verdict, error rates, amounts."""
    parts = [str(result["verdict"])] if "verdict" in result else []
    for name in ("wer", "cer"):
        if isinstance(result.get(name), float):
            parts.append(f"{name.upper()} {100 * result[name]:.2f} %")
    for name in ("steps", "utterances", "hours"):
        if isinstance(result.get(name), (int, float)):
            parts.append(f"{result[name]:g} {name}")
    return ", ".join(parts)


def _progress(newest: Mapping[str, Any]) -> str:
    parts = []
    step, total = newest.get("step"), newest.get("total_steps")
    if step is not None and total:
        parts.append(f"{step}/{total} ({100 * step // total} %)")
    if "loss" in newest:
        parts.append(f"loss {newest['loss']:.3f}")
    if newest.get("wer") is not None:
        parts.append(f"WER {100 * newest['wer']:.1f} %")
    if newest.get("seconds_left") is not None:
        parts.append(f"{duration(newest['seconds_left'])} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`12s`, `3m05s`, `2h07m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f}s" if whole < 10 else f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def print_status(status: Mapping[str, Any]) -> None:
    """Draw the table on standard output; in a file or a pipe each step stays on one line."""
    from rich.console import Console

    console = Console()
    console.print(table(status), soft_wrap=not console.is_terminal)


def watch(run: Run, backend: Backend) -> dict[str, Any]:
    """Redraw the table until no step is active; the last status."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        return _print_changes(run, backend)
    status = describe(run, backend)
    with Live(table(status), console=console, auto_refresh=False) as live:
        while _active(status):
            time.sleep(_POLL)
            status = describe(run, backend)
            live.update(table(status), refresh=True)
    return status


def _print_changes(run: Run, backend: Backend) -> dict[str, Any]:
    """A line for each change of state: what a log file can hold. The last status."""
    known: dict[str, str] = {}
    while True:
        status = describe(run, backend)
        for step in status["steps"]:
            if known.get(step["step"]) != step["state"]:
                known[step["step"]] = step["state"]
                line = f"{time.strftime('%H:%M:%S')}  {step['step']:<16} {step['state']}"
                print(f"{line}  {summary(step)}".rstrip(), flush=True)
        if not _active(status):
            print_status(status)
            return status
        time.sleep(_POLL)


def _active(status: Mapping[str, Any]) -> bool:
    return any(State(step["state"]) in ACTIVE for step in status["steps"])


def logs(
    step: StepDir,
    observe: Callable[[], Observed],
    *,
    rank: int,
    lines: int,
    pattern: str | None,
    follow: bool,
) -> None:
    """Print the log of one rank: its last lines, those that match, and what comes (`follow`).

    UserError where there is none yet and it is not followed, or the pattern is not one.
    """
    try:
        wanted = re.compile(pattern or "").search
    except re.error as error:
        raise UserError(f"--grep {pattern!r} is not a regular expression: {error}") from None
    seen = observe()
    if not step.log_files(rank) and not follow:
        ranks = sorted({file.name.split("_")[-2] for file in step.logs.glob("*_log.*")})
        known = f"; ranks with a log: {', '.join(ranks)}" if ranks else ""
        because = f" ({seen.reason})" if seen.reason else ""
        raise UserError(
            f"{step.name} has no log of rank {rank}: {seen.state.value}{because}{known}"
        )
    printed: dict[Path, int] = {}
    kept = [line for file in step.log_files(rank) for line in _new_lines(file, printed)]
    _print([line for line in kept if wanted(line)][-lines:])
    while follow:
        ended = observe().state not in ACTIVE
        for file in step.log_files(rank):
            _print([line for line in _new_lines(file, printed) if wanted(line)])
        if ended:
            return
        time.sleep(_POLL / 2)


def print_log(step: StepDir) -> None:
    """Print all that rank 0 of a step has said."""
    for file in step.log_files(0):
        _print(list(_new_lines(file, {})))


def _new_lines(file: Path, printed: dict[Path, int]) -> Iterator[str]:
    with file.open("rb") as opened:
        opened.seek(printed.get(file, 0))
        text = opened.read()
        printed[file] = opened.tell()
    yield from text.decode(errors="replace").splitlines()


def _print(lines: list[str]) -> None:
    if lines:
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


def print_kind(kind: Mapping[str, Any]) -> None:
    """A kind in full: what it does, its settings, what it finds, what it asks for."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console = console if console.is_terminal else Console(width=140)
    console.print(kind["about"] + "\n", markup=False, highlight=False)
    for part in ("settings", "result"):
        drawn = Table(title=part, title_justify="left")
        for column in ("name", "type", "default", "about"):
            drawn.add_column(column, overflow="fold")
        for row in kind[part]:
            drawn.add_row(*(Text(row[key]) for key in ("name", "type", "default", "about")))
        console.print(drawn)
    wants = " ".join(f"{name}={value}" for name, value in kind["resources"].items())
    console.print(f"resources, unless the step says otherwise: {wants}", highlight=False)


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    print(json.dumps(value, indent=1, default=str))
