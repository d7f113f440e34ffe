"""Progress: lines for a log file, a bar for a terminal."""

import itertools
import os
import pty
import subprocess
import sys
import time

import pytest

from lact_asr.utils.progress import Progress, clock, size
from tests.slurm.cluster import PATIENCE

LOOP = """
from lact_asr.utils.progress import Progress
with Progress("dev-clean", 1000, "B") as bar:
    for _ in range(10):
        bar.advance(100)
"""


def test_sizes_and_times_read_well() -> None:
    assert [size(n) for n in (0, 999, 6_387_309_499, 3e13)] == ["0 B", "999 B", "6.39 GB", "30 TB"]
    assert [clock(s) for s in (0, 61, 3725)] == ["0:00", "1:01", "1:02:05"]


def test_a_line_has_share_rate_and_time_left_and_counts_only_what_was_done_now() -> None:
    bar = Progress("x.tar.gz", 1e9, "B", done=4e8)
    bar.advance(1e8)
    assert bar.line(10) == "x.tar.gz: 500 MB of 1 GB (50 %), 10 MB/s, 0:50 left"
    files = Progress("headers", 28_539, "files")
    files.advance(28_539)
    assert files.line(2) == "headers: 28,539 of 28,539 files (100 %), 14,270 files/s, 0:02"


def test_a_log_file_gets_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count()  # every question for the time takes a second
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    with Progress("x", 12) as bar:
        for _ in range(12):
            bar.advance()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["x: 5 of 12", "x: 10 of 12", "x: 12 of 12"]


def test_a_failed_loop_does_not_claim_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), Progress("x", 100):
        raise ZeroDivisionError
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", LOOP]
    subprocess.run(command, stdout=theirs, env=environment, check=True, timeout=PATIENCE)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "━" in shown and "1.0/1.0 kB" in shown
