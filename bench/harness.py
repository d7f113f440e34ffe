"""What the benchmarks share: runs of commands, interleaved rounds, a table, a JSON file.

Wall times depend on what else the machine does. So contestants take turns within each round, the
ratio compares medians of the same rounds, and processor time is measured beside wall time.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "bench" / "results"
MEASURED = (".", ":(exclude)bench/results", ":(exclude)*.md")  # of the repository


@dataclass(frozen=True)
class Took:
    """What one command took, in seconds; `cpu` is user and system time, its children's too."""

    wall: float
    cpu: float


@dataclass
class Row:
    """One question: our values and those compared with, in the order of the rounds."""

    what: str
    unit: str = "s"
    goal: float | None = None  # of our median: at most this
    goal_ratio: float | None = None  # of the medians, ours / theirs: at most this
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Ours / theirs, by medians."""
        return median(self.ours) / median(self.theirs) if self.theirs else None

    @property
    def met(self) -> bool | None:
        """Whether the median meets the goal; None where there is none."""
        if self.goal is not None:
            return median(self.ours) <= self.goal
        ratio = self.ratio
        return None if self.goal_ratio is None or ratio is None else ratio <= self.goal_ratio


def argument_parser(name: str, story: str | None, tiny: str = "") -> argparse.ArgumentParser:
    """Of `python -m bench.NAME`; `tiny` says what its --tiny does, where it has one."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=story)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if tiny:
        parser.add_argument("--tiny", action="store_true", help=tiny)
    return parser


def command(
    words: Sequence[str], environment: Mapping[str, str], folder: Path, codes: Sequence[int] = (0,)
) -> Took:
    """Run a command to its end and time it; RuntimeError where its exit code is none of `codes`."""
    began = time.perf_counter()
    process = subprocess.Popen(
        words,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in codes:
        raise RuntimeError(f"{' '.join(words)}: exit {process.returncode}:\n{said}")
    return Took(wall, used.ru_utime + used.ru_stime)


def commit() -> str:
    """The commit that is measured, with `, edited` where the checkout differs from it, but
    for results and prose; nothing where there is no git or no repository.
    """
    if shutil.which("git") is None:
        return ""
    ask = partial(subprocess.run, cwd=REPOSITORY, capture_output=True, text=True)
    found = ask(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
    changed = ask(["git", "diff", "--quiet", "HEAD", "--", *MEASURED]).returncode
    return f"{found}, edited" if found and changed else found


def rounds(
    count: int, *contestants: Callable[[], None], after_each: Callable[[], None] | None = None
) -> None:
    """Let the contestants take turns; each round begins with another one."""
    for number in range(count):
        for offset in range(len(contestants)):
            contestants[(number + offset) % len(contestants)]()
            if after_each:
                after_each()


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the table: our median (least to most), theirs, the ratio, the goal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("what", "ours", "compared with", "ratio", "goal", ""):
        table.add_column(column, justify="left" if column == "what" else "right")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        met = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[row.met]
        table.add_row(
            row.what, _spread(row.ours, row.unit), _spread(row.theirs, row.unit), ratio,
            _goal(row), met,
        )  # fmt: skip
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    if unit != "s":
        return f"{median(values):g}"
    return f"{median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def _goal(row: Row) -> str:
    if row.goal is not None:
        return f"<= {row.goal:g}{f' {row.unit}' if row.unit == 's' else ''}"
    return "" if row.goal_ratio is None else f"<= {row.goal_ratio:g} x"


def write(name: str, rows: Sequence[Row], **about: Any) -> Path:
    """Store the rows, what was measured with and on what kind of machine, in bench/results."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    value = {
        "benchmark": name,
        "machine": {**machine, "system": f"{platform.system()} {platform.machine()}"},
        **about,
        "rows": [described(row) for row in rows],
    }
    path.write_text(json.dumps(value, indent=1) + "\n")
    return path


def described(row: Row) -> dict[str, Any]:
    """A row as it is stored."""
    facts: dict[str, Any] = {"what": row.what, "unit": row.unit}
    for name, values in (("ours", row.ours), ("compared_with", row.theirs)):
        if values:
            facts[name] = {
                "median": round(median(values), 4),
                "min": round(min(values), 4),
                "max": round(max(values), 4),
                "rounds": len(values),
            }
    facts |= {"ratio": None if row.ratio is None else round(row.ratio, 3)}
    return facts | {"goal": row.goal, "goal_ratio": row.goal_ratio, "met": row.met}
