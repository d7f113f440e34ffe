"""How far a long loop is: a bar in a terminal, a line every five seconds in a log file."""

import sys
import time
from typing import Any

INTERVAL = 5.0  # seconds between lines in a log file


class Progress:
    """Progress of one task, used as a context manager; `advance` is cheap enough for every item."""

    def __init__(self, label: str, total: float, unit: str = "", done: float = 0) -> None:
        """`unit` "B" shows bytes as kB, MB, GB; any other is printed after the counts."""
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._first = done
        self._started = self._printed = time.monotonic()
        self._bar: Any = _bar(label, total, unit, done) if sys.stdout.isatty() else None

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self._print()

    def advance(self, amount: float = 1) -> None:
        """`amount` more is done."""
        self.done += amount
        if self._bar:
            self._bar.advance(self._bar.task_ids[0], amount)
        elif time.monotonic() - self._printed >= INTERVAL:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        print(self.line(self._printed - self._started), flush=True)

    def line(self, elapsed: float) -> str:
        """The state in one line, `elapsed` seconds after the start."""
        rate = (self.done - self._first) / elapsed if elapsed > 0 else 0.0
        share = f"{100 * self.done / self.total:.0f} %" if self.total else "100 %"
        done = size(self.done) if self.unit == "B" else f"{self.done:,.0f}"
        counts = f"{done} of {self._amount(self.total)} ({share})"
        if self.done >= self.total:
            return f"{self.label}: {counts}, {self._amount(rate)}/s, {clock(elapsed)}"
        left = clock((self.total - self.done) / rate) if rate else "unknown time"
        return f"{self.label}: {counts}, {self._amount(rate)}/s, {left} left"

    def _amount(self, value: float) -> str:
        return size(value) if self.unit == "B" else f"{value:,.0f} {self.unit}".rstrip()


def size(count: float) -> str:
    """Bytes for people: 6387309499 -> 6.39 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def clock(seconds: float) -> str:
    """Seconds for people: 3725 -> 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(label: str, total: float, unit: str, done: float) -> Any:
    from rich import progress  # 0.1 s, and of no use in a log file

    amount = (
        [progress.DownloadColumn(), progress.TransferSpeedColumn()]
        if unit == "B"
        else [progress.MofNCompleteColumn(), progress.TextColumn(unit)]
    )
    columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), *amount]
    bar = progress.Progress(*columns, progress.TimeRemainingColumn())
    bar.add_task(label, total=total, completed=int(done))
    return bar
