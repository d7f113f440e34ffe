"""What a user sees of a run: the status table, the same as JSON, and waiting.

Whatever a file holds or lacks, and whether Slurm answers or not, each step is shown with what is
known of it. `status` must stay cheap (60 ms): rich is imported only where something is drawn.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jobs import logs
from jobs.causes import cause_in
from jobs.healing import remedies
from jobs.healing.nodes import explain, nodes_to_exclude
from jobs.healing.spans import ENDS, STARTS
from jobs.printing import duration, one_line
from jobs.program import NAME
from jobs.scheduling.observe import Queue, View, view
from jobs.scheduling.plan import ACTIVE, State
from jobs.step_folder import StepDir, Submission
from jobs.store import Run
from lact_asr.utils.files import number

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
HEALTHY = "HEALTHY"  # what is said of a training with nothing wrong
_SILENT = 900.0  # seconds without a word in its log after which what it last said is old
_POLL = 1.0  # seconds between two checks of the files
_WIDEST = 400  # characters of a line about one step


def describe(run: Run, queue: Queue) -> dict[str, Any]:
    """The status of a run as data: what `status --json` prints."""
    seen, info = view(run, queue), run.info()
    return {
        "run": run.name,
        "path": str(run.path),
        "pipeline": info["pipeline"],
        "cluster": info["cluster"]["name"],
        "created": info["created"],
        "trouble": seen.trouble,
        "excluded": nodes_to_exclude(run.path.parent, info.get("scheduler", "")),
        "busy": seen.busy,
        "steps": [_describe_step(run, step, seen) for step in info["steps"]],
    }


def _describe_step(run: Run, step: Mapping[str, Any], seen: View) -> dict[str, Any]:
    record, (state, reason) = seen.records[step["name"]], seen.observed[step["name"]]
    latest, folder = record.latest, record.folder
    job = seen.queue.get(latest.token) if latest else None
    seconds = _seconds_run(record.events, state)
    if seconds is None and job is not None:
        seconds = job.elapsed or None
    progress = folder.progress() if record.events else {}
    first, *rest = reason.splitlines() or [""]
    last_line = ""
    if latest and state in (State.FAILED, State.LOST) and not record.has_own_failure:
        last_line = logs.last_line(folder, latest.job)
    return {
        "step": step["name"],
        "kind": step["kind"],
        "state": state.value,
        "reason": first,
        "cause": cause_in(reason) or cause_in(last_line.partition(" failed: ")[2]),
        "remedies": sum(event["event"] == remedies.EVENT for event in record.events),
        "job": latest.job or (job.job if job else "") if latest else "",
        "submissions": len(record.tries),
        "seconds": None if seconds is None else round(seconds, 1),
        "progress": progress,
        "health": _health(record.events) if state is State.RUNNING else None,
        "silent": _silence(folder, latest) if state is State.RUNNING else None,
        "result": record.result,
        "last_line": last_line,
        "follows": step["name"] in seen.follows,
        "more": f"{NAME} logs {run.name}/{step['name']}" if last_line or rest else "",
        "unreadable": list(folder.flaws.values()),
    }


def _health(events: list[dict[str, Any]]) -> str | None:
    """HEALTHY, or what was found last and is not over; None for a start that watches nothing yet.

    Every start of a training says what is still open from before.
    """
    found: dict[str, str] | None = None
    for event in events:
        word, sentence = str(event.get("word")), str(event.get("sentence"))
        if event["event"] in STARTS and "host" in event:
            found = None
        elif event["event"] == "watched":
            still = event.get("open")
            found = {str(w): str(s) for w, s in still.items()} if isinstance(still, dict) else {}
        elif found is not None and event["event"] == "finding":
            found[word] = sentence
        elif found is not None and event["event"] == "healthy":
            found.pop(word, None)
    return None if found is None else ([HEALTHY, *found.values()])[-1]


def _silence(folder: StepDir, latest: Submission | None) -> float | None:
    """Seconds since a job's log last grew, where they are many: it may be slow, or hang, or gone.

    Slurm 22.05 called a job running for 9 minutes whose node had lost its power and was back.
    """
    written = folder.last_written(latest.job) if latest else None
    seconds = 0.0 if written is None else time.time() - written
    return round(seconds, 1) if seconds > _SILENT else None


def _seconds_run(events: list[dict[str, Any]], state: State) -> float | None:
    """Seconds the step has been running, over all its starts; None before the first.

    The clock of a node may be ahead of the one here: what has not begun yet has run for no time.
    """
    total, since = 0.0, None
    for event in events:
        if event["event"] in STARTS and "host" in event:  # training reports what it resumed, too
            since = event["time"]
        elif event["event"] in ENDS and since is not None:
            total, since = total + max(0.0, event["time"] - since), None
    if since is not None and state is State.RUNNING:
        total += max(0.0, time.time() - since)
    return total if events else None


def exit_code(status: Mapping[str, Any]) -> int:
    """0 where all has succeeded, or goes on and nothing has ended otherwise; else 1."""
    states = {State(step["state"]) for step in status["steps"] if not step["follows"]}
    good = {State.SUCCEEDED, *ACTIVE, *([State.NEW] if status["busy"] else [])}
    return int(not states <= good)


def table(status: Mapping[str, Any]) -> "Text":
    """The status in columns; 100 steps take 5 ms so, 50 ms as a Table of rich."""
    from rich.text import Text

    return Text.assemble(*_pieces(status))


def _pieces(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The text of the table, each piece with its style."""
    rows = [("step", "kind", "state", "time", "job", "what"), *map(_row, status["steps"])]
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    yield f"{status['run']} on {status['cluster']}", "italic"
    for row in rows:
        step, kind, state, *rest = (
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        )
        yield f"\n{step}{kind}", ""
        yield state, _COLOURS.get(row[2], "")
        yield "".join(rest).rstrip(), ""
    for line in (_trouble(status), explain(status["excluded"]) if _active(status) else ""):
        if line:
            yield f"\n{line}", "yellow"


def _row(step: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = "" if step["seconds"] is None else duration(step["seconds"])
    kind, job = one_line(step["kind"], 20), one_line(step["job"].split(".")[0], 20)
    return step["step"], kind, step["state"], seconds, job, summary(step)


def summary(step: Mapping[str, Any]) -> str:
    """The one line that matters of a step: why it failed, what it found, how far it is."""
    said = list(dict.fromkeys([step["reason"], *step["unreadable"]]))
    if step["state"] == State.SUCCEEDED.value:
        said = [_headline(step["result"]), *step["unreadable"]]
    elif step["state"] == State.RUNNING.value:
        said[:0] = [_progress(step["progress"]), _sign_of_life(step)]
    if often := step["remedies"]:
        said.append(f"({often} {'remedy' if often == 1 else 'remedies'})")
    if step["last_line"]:
        said.append(f"its log ends: {step['last_line']} ({step['more']})")
    elif step["more"]:
        said.append(f"there is more: {step['more']}")
    return one_line("; ".join(filter(None, said)), _WIDEST)


def _sign_of_life(step: Mapping[str, Any]) -> str:
    """What a running step says of itself; of one that has long said nothing, just that."""
    if (silent := step["silent"]) is None:
        return str(step["health"] or "")
    found = [step["health"]] if step["health"] not in (None, HEALTHY) else []
    return "; ".join([*found, f"nothing in its log for {duration(silent)}"])


def _headline(result: Mapping[str, Any]) -> str:
    """The results people look for: verdict, error rates, amounts."""
    parts = [str(result["verdict"])] if "verdict" in result else []
    for name in ("wer", "cer"):
        if (rate := number(result.get(name))) is not None:
            parts.append(f"{name.upper()} {100 * rate:.2f} %")
    for name in ("steps", "utterances", "hours"):
        if (amount := number(result.get(name))) is not None:
            parts.append(f"{amount:g} {name}")
    return ", ".join(parts)


def _progress(newest: Mapping[str, Any]) -> str:
    """How far a step is; a loss that is not finite is null in its metrics."""
    found = {name: number(value) for name, value in newest.items()}
    step, total, loss = found.get("step"), found.get("total_steps"), found.get("loss")
    wer, left = found.get("wer"), found.get("seconds_left")
    parts = []
    if step is not None and total:
        parts.append(f"{step:.0f}/{total:.0f} ({100 * step // total:.0f} %)")
    if "loss" in newest:
        parts.append("loss not finite" if loss is None else f"loss {loss:.3f}")
    if dropped := found.get("steps_skipped"):
        parts.append(f"{dropped:.0f} steps dropped")
    if wer is not None:
        parts.append(f"WER {100 * wer:.1f} %")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def print_status(status: Mapping[str, Any]) -> None:
    """Draw the table on standard output; a file or a pipe gets it plain, and 25 ms sooner."""
    if not sys.stdout.isatty():
        print("".join(text for text, _ in _pieces(status)))
        return
    from rich.console import Console

    Console().print(table(status))


def watch(run: Run, queue: Queue) -> dict[str, Any]:
    """Redraw the table until no step is active; the last status."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        return _print_changes(run, queue)
    status = describe(run, queue)
    with Live(table(status), console=console, auto_refresh=False) as live:
        while _active(status):
            time.sleep(_POLL)
            status = describe(run, queue)
            live.update(table(status), refresh=True)
    return status


def _print_changes(run: Run, queue: Queue) -> dict[str, Any]:
    """A line for each change of state: what a log file can hold. The last status."""
    known: dict[str, str] = {}
    while True:
        status = describe(run, queue)
        for name, (state, line) in _lines(status).items():
            if known.get(name, "") != state:
                known[name] = state
                print(f"{time.strftime('%H:%M:%S')}  {line}".rstrip(), flush=True)
        if not _active(status):
            print_status(status)
            return status
        time.sleep(_POLL)


def _lines(status: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What is printed when it changes, and as which line: the states, and whether Slurm answers."""
    lines = {
        step["step"]: (step["state"], f"{step['step']:<16} {step['state']}  {summary(step)}")
        for step in status["steps"]
    }
    silent = "yes" if status["trouble"] else ""
    return {"": (silent, _trouble(status) or "Slurm answers again"), **lines}


def _trouble(status: Mapping[str, Any]) -> str:
    return one_line(status["trouble"], _WIDEST)


def _active(status: Mapping[str, Any]) -> bool:
    """Whether anything may still change without anybody's doing."""
    going = (step["follows"] or State(step["state"]) in ACTIVE for step in status["steps"])
    return any(going) or bool(status["busy"])
