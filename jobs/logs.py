"""The log of a step: its last lines, those that match, and what comes.

A log may be 300 MB of anything: it is never held in memory, a line is printed when it is whole, and
a file that becomes shorter or is replaced is read from its beginning.
"""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from jobs.errors import UserError
from jobs.printing import one_line
from jobs.scheduling.observe import Queue, view
from jobs.scheduling.plan import ACTIVE
from jobs.step_folder import StepDir
from jobs.store import Run

_POLL = 0.5  # seconds between two checks of the files
_BLOCK = 1 << 16  # bytes read at once
_LONGEST = 1 << 20  # bytes after which what has no end yet counts as a line

# What srun adds to every bad end: "srun: Force Terminated StepId=17.0",
# "srun: error: n1: task 0: Exited with exit code 1"
_CHATTER = re.compile(r"srun: (?!error)|srun: error: .*: Exited with exit code")
_Matcher = Callable[[str], object]  # true where a line is wanted


class Log:
    """One log file, which each look reads on from where the last one ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble = ""  # why it could not be read
        self._offset = self._inode = 0

    def lines(self, *, rest: bool) -> Iterator[str]:
        """The whole lines since the last look; with `rest` also a last one without an end."""
        try:
            with self._open() as file:
                file.seek(self._offset)
                while line := file.readline(_LONGEST):
                    if not (line.endswith(b"\n") or len(line) == _LONGEST or rest):
                        return
                    self._offset += len(line)
                    yield line.removesuffix(b"\n").decode(errors="replace")
        except OSError as error:
            self._note(error)

    def go_to_last(self, count: int, *, rest: bool) -> int:
        """Go to the beginning of the last `count` lines; how many there are, `count` at most."""
        try:
            with self._open() as file:
                self._offset, found = _start_of_last(file, count, rest)
                return found
        except OSError as error:
            self._note(error)
            return 0

    def _open(self) -> BinaryIO:
        file = self.path.open("rb")
        now = os.fstat(file.fileno())
        if now.st_ino != self._inode or now.st_size < self._offset:  # replaced or cut: a new log
            self._offset, self._inode = 0, now.st_ino
        return file

    def _note(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # one that is gone meanwhile says nothing
            self.trouble = f"{self.path} cannot be read: {error.strerror}"


def _start_of_last(file: BinaryIO, count: int, rest: bool) -> tuple[int, int]:
    """Where the last `count` lines begin, and how many there are (`rest`: with one cut short)."""
    position = size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    missing = count if rest and file.read(1) not in (b"\n", b"") else count + 1  # line ends
    if not missing:
        return size, 0
    while position:
        position = max(0, position - _BLOCK)
        file.seek(position)
        block = file.read(min(_BLOCK, size - position))
        size = position
        ends = block.count(b"\n")
        if ends >= missing:
            start = len(block)
            for _ in range(missing):
                start = block.rindex(b"\n", 0, start)
            return position + start + 1, count
        missing -= ends
    return position, count + 1 - missing


def logs(
    run: Run,
    step: StepDir,
    queue: Queue,
    *,
    rank: int,
    lines: int,
    pattern: str | None,
    follow: bool,
) -> int:
    """Print the log of one rank: its last lines, those that match, and what comes (`follow`).

    1 where a file could not be read, else 0. UserError where there is no log and it is not
    followed, or the pattern is not one. Slurm is asked only for what no file tells.
    """
    wanted = _matcher(pattern)
    known = _logs_of_rank(step, rank, {})
    if not known and not follow:
        raise UserError(_no_log(run, step, queue, rank))
    _print(_last(list(known.values()), lines, wanted if pattern else None, rest=not follow))
    troubles = _say_troubles(step, known, set())
    while follow:
        ended = _step_has_ended(run, step, queue)
        for log in _logs_of_rank(step, rank, known).values():
            _print(line for line in log.lines(rest=ended) if wanted(line))
        troubles = _say_troubles(step, known, troubles)
        if ended:
            break
        time.sleep(_POLL)
    return int(bool(troubles))


def _say_troubles(step: StepDir, known: Mapping[Path, Log], said: set[str]) -> set[str]:
    """Say why files cannot be read, where that has not been said; all that has been said."""
    troubles = {*step.flaws.values(), *(log.trouble for log in known.values() if log.trouble)}
    for trouble in sorted(troubles - said):
        print(trouble, file=sys.stderr, flush=True)
    return troubles | said


def _matcher(pattern: str | None) -> _Matcher:
    try:
        return re.compile(pattern or "").search
    except re.error as error:
        raise UserError(f"--grep {pattern!r} is not a regular expression: {error}") from None


def _logs_of_rank(step: StepDir, rank: int, known: dict[Path, Log]) -> dict[Path, Log]:
    """The logs of a rank, those that are new among them."""
    for file in step.log_files(rank):
        known.setdefault(file, Log(file))
    return known


def _no_log(run: Run, step: StepDir, queue: Queue, rank: int) -> str:
    """Why there is no log."""
    seen = view(run, queue)
    state, reason = seen.observed[step.name]
    because = "; ".join(filter(None, [reason, *step.flaws.values(), seen.trouble]))
    ranks = ", ".join(step.ranks_with_log())
    return (
        f"{step.name} has no log of rank {rank}: {state.value}"
        + (f" ({because})" if because else "")
        + (f"; ranks with a log: {ranks}" if ranks else "")
    )


def _last(logs: list[Log], count: int, wanted: _Matcher | None, *, rest: bool) -> Iterable[str]:
    """The last `count` lines of all the logs, or of those that match."""
    if wanted is None:
        left = count
        for log in reversed(logs):
            left -= log.go_to_last(left, rest=rest)
    every = (line for log in logs for line in log.lines(rest=rest))
    return every if wanted is None else deque(filter(wanted, every), count)


def _step_has_ended(run: Run, step: StepDir, queue: Queue) -> bool:
    """Whether a step has ended: its own files tell, and now and then the queue."""
    if step.has_ended():
        return True
    return queue.is_due and view(run, queue).observed[step.name].state not in ACTIVE


def print_log(step: StepDir) -> None:
    """Print all that rank 0 of a step has said."""
    for log in _logs_of_rank(step, 0, {}).values():
        _print(log.lines(rest=True))


def last_line(step: StepDir, job: str, longest: int = 160) -> str:
    """The last thing a job has said, in one line; empty where it has said nothing.

    Its errors first: there Slurm says who was killed, and Python why it ended.
    """
    said = [
        plain
        for file in reversed(step.logs_of(job))
        for line in _end(file).splitlines()
        if (plain := one_line(line, longest))
    ]
    return next((line for line in reversed(said) if not _CHATTER.match(line)), "")


def _end(path: Path) -> str:
    """The last 4 KiB of a file; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
